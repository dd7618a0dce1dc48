//! vtrain: LoRA fine-tuning and sampling for video diffusion transformers.

pub mod video;
pub mod rng;
pub mod data;
