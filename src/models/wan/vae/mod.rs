//! `AutoencoderKLWan` of Wan 2.1: clips to latents of 1/4 the frames and 1/8 the size, and back. arXiv:2503.20314
//!
//! The first frame of a clip is coded alone, all others by fours, which become one latent frame. A clip is processed
//! piece by piece, four frames or one latent frame at a time, and the causal convolutions cache the previous frames:
//! pieces give the same result as the whole clip, with the memory of one piece. A decoded clip lies in -1..1.

mod attention;
mod coder;
mod config;
mod norm;

pub use crate::models::vae::Parts;
pub use config::Config;

use crate::models::autoencoder::Autoencoder;

/// The autoencoder, or half of it.
pub type Vae = Autoencoder<Config>;
