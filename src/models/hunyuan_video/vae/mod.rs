//! `AutoencoderKLHunyuanVideo`: clips to latents of 1/4 the frames and 1/8 the size, and back. arXiv:2412.03603
//!
//! Convolutions are causal over time and repeat the pixels at the edges; in the middle a pixel attends to its own frame and
//! those before. Yet a clip cannot come piece by piece: every group norm takes its mean and variance over all frames, so
//! that the first frame depends on the last one, and layer by layer all frames must be there. Whole clips are therefore
//! held whole between layers; within a layer a few frames pass at a time.
//!
//! Tiles are those of diffusers: 16 frames, the next one 12 later, and 256x256 pixels, 192 apart. diffusers cuts clips of
//! more than 16 frames along the frames by default, so its default differs from a whole clip: tiles are equal to it.

mod coder;
mod config;

pub use crate::models::vae::Parts;
pub use config::Config;

use crate::models::autoencoder::Autoencoder;

/// The autoencoder, or half of it.
pub type Vae = Autoencoder<Config>;
