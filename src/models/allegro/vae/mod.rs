//! `AutoencoderKLAllegro`: clips to latents of 1/4 the frames and 1/8 the size, and back. arXiv:2410.15458
//!
//! Layers of pictures, whose norms and attention see one frame, alternate with convolutions over time, whose norms see all
//! frames; none is causal, so that all frames, the first too, are four of a latent one.
//!
//! It was trained on clips of 24 frames of 320x320 and knows only tiles of that size, the next one 16 frames, 200 rows or 240
//! columns later. diffusers codes in such tiles whether told or not, and what none covers stays a constant; here the last one
//! ends with the clip ([`crate::models::tiling::Seams::Ramps`]). Smaller clips are one tile of their own size.
//!
//! It is computed in f32 (`force_upcast`) whatever the run's `dtype` is.

mod coder;
mod config;

pub use crate::models::vae::Parts;
pub use config::Config;

use crate::models::autoencoder::Autoencoder;

/// The autoencoder, or half of it.
pub type Vae = Autoencoder<Config>;
