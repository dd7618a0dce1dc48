//! Captions as tokens, and tokens as embeddings: the encoders that several families share.

pub mod clean;
pub mod projection;
pub mod sentencepiece;
pub mod special;
pub mod t5;
pub mod tokenize;
mod transpose;

pub use t5::T5Encoder;
pub use tokenize::{Encoding, TextTokenizer};
