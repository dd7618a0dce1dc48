//! Text encoders shared by several families: captions to tokens, and tokens to embeddings.

pub mod byte_pairs;
mod causal;
pub mod clean;
pub mod clip_text;
pub mod llama;
pub mod projection;
pub mod sentencepiece;
pub mod special;
pub mod t5;
pub mod tokenize;
mod transpose;

pub use clip_text::ClipText;
pub use llama::Llama;
pub use t5::T5Encoder;
pub use tokenize::{Encoding, TextTokenizer};
