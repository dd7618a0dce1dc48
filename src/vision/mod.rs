//! Pictures as embeddings: the encoders that several families share.

pub mod clip;
pub mod preprocess;

pub use clip::ClipVision;
pub use preprocess::Preprocessor;
