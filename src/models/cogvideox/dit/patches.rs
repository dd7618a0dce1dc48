//! Patches: latents to tokens and back.
//!
//! 1.0 cuts every frame into p x p patches, whose embedding checkpoints store as a convolution; 1.5 cuts patches p_t
//! frames deep and embeds them by a linear layer. Either way it is one matrix product over the numbers of a patch.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns; N = F/p_t x H/p x W/p tokens.

use candle_core::{Result, Tensor};

use super::config::Config;
use crate::nn::{Linear, Weights, linear};
use crate::ops::linear::Frozen;

/// Projection of the numbers of a patch to a token.
#[derive(Debug, Clone)]
pub enum Projection {
    Conv(Frozen), // (D, C p p)
    Linear(Linear),
}

impl Projection {
    /// Reads `weight` and `bias`.
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let (channels, p, dim) = (config.in_channels, config.patch_size, config.inner_dim());
        let numbers = channels * p * p;
        if let Some(frames) = config.patch_size_t {
            return Ok(Self::Linear(linear(numbers * frames, dim, weights)?));
        }
        Ok(Self::Conv(Frozen {
            weight: weights.get((dim, channels, p, p), "weight")?.reshape((dim, numbers))?,
            bias: config.patch_bias.then(|| weights.get(dim, "bias")).transpose()?,
        }))
    }

    /// Forward pass (B, N, numbers of a patch) -> (B, N, D)
    pub fn forward(&self, patches: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linear(linear) => linear.forward(patches),
            Self::Conv(frozen) => frozen.forward(patches),
        }
    }
}

/// Cuts (B, F, C, H, W) -> (B, N, C p_t p p)
pub fn patchify(config: &Config, latents: &Tensor) -> Result<Tensor> {
    let (batch, frames, channels, height, width) = latents.dims5()?;
    let (p, p_t) = (config.patch_size, config.patch_frames());
    let [t, h, w] = [frames / p_t, height / p, width / p];
    latents
        .reshape(vec![batch, t, p_t, channels, h, p, w, p])?
        .permute([0, 1, 4, 6, 3, 2, 5, 7])? // (B, F/p_t, H/p, W/p, C, p_t, p, p)
        .reshape((batch, t * h * w, channels * p_t * p * p))
}

/// Joins (B, N, C p_t p p) -> (B, F, C, H, W) for a `grid` of F/p_t, H/p, W/p tokens
pub fn unpatchify(config: &Config, tokens: &Tensor, grid: [usize; 3]) -> Result<Tensor> {
    let batch = tokens.dim(0)?;
    let (p, p_t, channels) = (config.patch_size, config.patch_frames(), config.out_channels);
    let [t, h, w] = grid;
    tokens
        .reshape(vec![batch, t, h, w, channels, p_t, p, p])?
        .permute([0, 1, 5, 4, 2, 6, 3, 7])? // (B, F/p_t, p_t, C, H/p, p, W/p, p)
        .reshape((batch, t * p_t, channels, h * p, w * p))
}
