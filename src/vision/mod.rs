//! Image encoders shared by several families: pictures to embeddings.

pub mod clip;
pub mod preprocess;

pub use clip::ClipVision;
pub use preprocess::Preprocessor;
