//! Captions as token ids and as embeddings, against sentencepiece and transformers.

mod caption;
mod embeddings;
mod hunyuan_video;
mod projection;
mod tokens;
mod wan;

pub use tokens::small as small_sentencepiece;
