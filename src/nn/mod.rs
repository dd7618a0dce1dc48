//! Layers, named as in the checkpoints, and the sources of their weights.
//!
//! All of them keep candle's gradient graph, by [`crate::ops`]: candle-nn's fused ops (`softmax_last_dim`, `rms_norm`,
//! `layer_norm`, `rope`) silently cut it, so they must not be used where gradients pass.

pub mod ada_norm;
pub mod adapter;
pub mod attention;
pub mod checkpoint;
pub mod clip_layer;
pub mod coder;
pub mod coder_memory;
pub mod condition_embed;
pub mod conv3d;
pub mod dropout;
pub mod embed;
pub mod feed_forward;
mod file_tensor;
pub mod flops;
pub mod frame_attention;
pub mod frame_resampler;
pub mod fused_rows;
pub mod gguf;
pub mod group_norm;
pub mod joint_attention;
pub mod lent;
pub mod linear;
pub mod load;
pub mod named_file;
pub mod norm;
mod outline;
pub mod patch_embed;
pub mod pixel_resampler;
pub mod quantized_cache;
mod random_weights;
pub mod resampler;
pub mod residency;
pub mod resident_share;
pub mod resnet;
pub mod rewrite;
pub mod rope;
pub mod safetensors_writer;
pub mod scale_shift;
pub mod shards;
pub mod shuffle;
pub mod storage;
pub mod stream;
pub mod tensor_file;
pub mod tensor_folder;
pub mod token_refiner;
pub mod vae_memory;
pub mod weight_files;
pub mod weights;

pub use attention::Attention;
pub use conv3d::Conv3d;
pub use feed_forward::FeedForward;
pub use linear::{Linear, linear, linear_no_bias};
pub use load::Load;
pub use norm::Norm;
pub use resnet::Resnet;
pub use scale_shift::ScaleShiftTable;
pub use weight_files::WeightFolder;
pub use weights::Weights;
