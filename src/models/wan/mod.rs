//! Wan 2.1 (T2V 1.3B and 14B, I2V 14B). Paper: arXiv:2503.20314. Checkpoints: `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`,
//! `-T2V-14B-Diffusers`, `-I2V-14B-480P-Diffusers`, `-I2V-14B-720P-Diffusers`.

mod bare;
pub mod dit;
pub mod vae;

pub use bare::bare;
