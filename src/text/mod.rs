//! Text encoders shared by several families: captions to tokens, and tokens to embeddings.

pub mod clean;
pub mod projection;
pub mod sentencepiece;
pub mod special;
pub mod t5;
pub mod tokenize;
mod transpose;

pub use t5::T5Encoder;
pub use tokenize::{Encoding, TextTokenizer};
