//! `AutoencoderKLCogVideoX`: clips to latents of 1/4 the frames and 1/8 the size, and back.  arXiv:2408.06072
//!
//! A clip is processed a few frames at a time (8 of pixels, 2 of latents; the first batch takes the remainder too), and
//! the causal convolutions cache the previous frames. Group norms see one such batch, so its size is part of the model.

mod coder;
mod config;
mod norm;

pub use crate::models::vae::Parts;
pub use config::Config;

use crate::models::autoencoder::Autoencoder;

/// The autoencoder, or half of it.
pub type Vae = Autoencoder<Config>;
