//! Patches: latents or pixels to tokens and back. The convolution in checkpoints is one matrix product over the numbers
//! of a patch.
//!
//! Shapes: B samples, F frames, C channels, H rows, W columns; p_t, p_h and p_w those of a patch, so N = F/p_t x H/p_h
//! x W/p_w tokens, D the model's width.

use candle_core::{Result, Tensor};

use super::linear::Linear;
use super::weights::Weights;

/// A convolution whose stride equals the size of its kernel.
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    proj: Linear, // (D, C p_t p_h p_w)
    size: [usize; 3],
}

impl PatchEmbed {
    /// Embedding by a layer of the C p_t p_h p_w numbers of a patch.
    pub fn by(proj: Linear, size: [usize; 3]) -> Self {
        Self { proj, size }
    }

    /// Reads `weight` (D, C, p_t, p_h, p_w) and `bias` (D).
    pub fn new(channels: usize, dim: usize, size: [usize; 3], weights: Weights) -> Result<Self> {
        Ok(Self::by(Linear::patches(channels, dim, &size, true, weights)?, size))
    }

    /// Forward pass (B, C, F, H, W) -> (B, N, D), and a `grid` of F/p_t, H/p_h, W/p_w tokens
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, [usize; 3])> {
        let (batch, channels, frames, height, width) = x.dims5()?;
        let [p_t, p_h, p_w] = self.size;
        let grid = [frames / p_t, height / p_h, width / p_w];
        let [t, h, w] = grid;
        let patches = x
            .reshape(vec![batch, channels, t, p_t, h, p_h, w, p_w])?
            .permute([0, 2, 4, 6, 1, 3, 5, 7])? // (B, t, h, w, C, p_t, p_h, p_w)
            .reshape((batch, t * h * w, channels * p_t * p_h * p_w))?;
        Ok((self.proj.forward(&patches)?, grid))
    }
}

/// Joins (B, N, p_t p_h p_w C) -> (B, C, F, H, W) for a `grid` of tokens
pub fn unpatchify(tokens: &Tensor, grid: [usize; 3], size: [usize; 3]) -> Result<Tensor> {
    let (batch, _, numbers) = tokens.dims3()?;
    let ([p_t, p_h, p_w], [t, h, w]) = (size, grid);
    let channels = numbers / (p_t * p_h * p_w);
    tokens
        .reshape(vec![batch, t, h, w, p_t, p_h, p_w, channels])?
        .permute([0, 7, 1, 4, 2, 5, 3, 6])? // (B, C, t, p_t, h, p_h, w, p_w)
        .reshape((batch, channels, t * p_t, h * p_h, w * p_w))
}

/// Joins (B, N, C p_t p_h p_w) -> (B, C, F, H, W) for a `grid` of tokens
pub fn unpatchify_channels_first(tokens: &Tensor, grid: [usize; 3], size: [usize; 3]) -> Result<Tensor> {
    let (batch, _, numbers) = tokens.dims3()?;
    let ([p_t, p_h, p_w], [t, h, w]) = (size, grid);
    let channels = numbers / (p_t * p_h * p_w);
    tokens
        .reshape(vec![batch, t, h, w, channels, p_t, p_h, p_w])?
        .permute([0, 4, 1, 5, 2, 6, 3, 7])? // (B, C, t, p_t, h, p_h, w, p_w)
        .reshape((batch, channels, t * p_t, h * p_h, w * p_w))
}
