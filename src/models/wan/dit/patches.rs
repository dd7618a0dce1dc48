//! Latents to tokens and back. What checkpoints keep as a convolution is one matrix product over the numbers of a patch.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns; p_t, p_h and p_w those of a patch, so
//! N = F/p_t x H/p_h x W/p_w tokens, D the model's width.

use candle_core::{Result, Tensor};

use super::config::Config;
use crate::nn::Weights;
use crate::ops::linear::Frozen;

/// `patch_embedding`
#[derive(Debug, Clone)]
pub struct PatchEmbedding(Frozen); // (D, C p_t p_h p_w)

impl PatchEmbedding {
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let (dim, channels, [t, h, w]) = (config.inner_dim(), config.in_channels, config.patch_size);
        Ok(Self(Frozen {
            weight: weights.get((dim, channels, t, h, w), "weight")?.flatten_from(1)?,
            bias: Some(weights.get(dim, "bias")?),
        }))
    }

    /// (B, C, F, H, W) -> (B, N, D), and a `grid` of F/p_t, H/p_h, W/p_w tokens
    pub fn forward(&self, config: &Config, latents: &Tensor) -> Result<(Tensor, [usize; 3])> {
        let (batch, channels, frames, height, width) = latents.dims5()?;
        let [p_t, p_h, p_w] = config.patch_size;
        let grid = [frames / p_t, height / p_h, width / p_w];
        let [t, h, w] = grid;
        let patches = latents
            .reshape(vec![batch, channels, t, p_t, h, p_h, w, p_w])?
            .permute([0, 2, 4, 6, 1, 3, 5, 7])? // (B, t, h, w, C, p_t, p_h, p_w)
            .reshape((batch, t * h * w, channels * p_t * p_h * p_w))?;
        Ok((self.0.forward(&patches)?, grid))
    }
}

/// (B, N, p_t p_h p_w C) -> (B, C, F, H, W)
pub fn unpatchify(config: &Config, tokens: &Tensor, grid: [usize; 3]) -> Result<Tensor> {
    let (batch, channels) = (tokens.dim(0)?, config.predicted_channels());
    let ([p_t, p_h, p_w], [t, h, w]) = (config.patch_size, grid);
    tokens
        .reshape(vec![batch, t, h, w, p_t, p_h, p_w, channels])?
        .permute([0, 7, 1, 4, 2, 5, 3, 6])? // (B, C, t, p_t, h, p_h, w, p_w)
        .reshape((batch, channels, t * p_t, h * p_h, w * p_w))
}
