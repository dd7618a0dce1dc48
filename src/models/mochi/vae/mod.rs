//! `AutoencoderKLMochi`: clips to latents of 1/6 the frames and 1/8 the size, and back. AsymmVAE of
//! <https://github.com/genmoai/mochi>
//!
//! The encoder sees Fourier features of the pixels, too, and in it every pixel attends to itself in all earlier frames: so it
//! takes clips whole. The decoder has causal convolutions and norms by frames, without attention: latent frames pass one by
//! one, which gives the same as the whole clip, with the memory of one. Six frames come of each; the first five of a clip are
//! dropped.
//!
//! Tiles are those of diffusers, 256x256 pixels, 192 apart. diffusers' decoding of two latent frames at a time
//! (`use_framewise_decoding`) pads frames with zeros instead of their edges, and is not what the model was trained with.

mod coder;
mod config;

pub use crate::models::vae::Parts;
pub use config::Config;

use crate::models::autoencoder::Autoencoder;

/// The autoencoder, or half of it.
pub type Vae = Autoencoder<Config>;
