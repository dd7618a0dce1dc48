//! `torch.nn.GroupNorm`, channels last: `(x - mean) / sqrt(variance + eps) * weight + bias`, with mean and variance over a
//! group of channels and all frames, rows and columns that it sees.
//!
//! As tables of `x * scale + shift`, which the next convolution applies to its input with a SiLU: scale = weight /
//! sqrt(variance + eps), shift = bias - mean * scale. They are f32 for any input type: `shift` mostly subtracts the mean,
//! and a narrower type would lose the remainder in rounding.
//!
//! Shapes: B batch, F frames, H rows, W columns, C channels, G groups.

use candle_core::{DType, Result, Tensor};

use super::coder::Modulate;
use super::conv3d::{Modulation, group_moments};
use super::weights::Weights;

/// Group norm.
pub struct GroupNorm {
    weight: Tensor, // (C) f32
    bias: Tensor,   // (C) f32
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias`.
    pub fn load(channels: usize, groups: usize, eps: f64, weights: Weights) -> Result<Self> {
        let weights = weights.to_dtype(DType::F32);
        Ok(Self {
            weight: weights.get(channels, "weight")?,
            bias: weights.get(channels, "bias")?,
            groups,
            eps,
        })
    }

    /// Returns scale and shift for x (B, F, H, W, C), both (B, 1, 1, 1, C) f32.
    pub fn tables(&self, x: &Tensor) -> Result<[Tensor; 2]> {
        let (batch, channels) = (x.dim(0)?, x.dim(4)?);
        let (mean, variance) = group_moments(x, self.groups)?; // (B, G)
        let per_channel = |values: &Tensor| {
            values
                .unsqueeze(2)?
                .repeat((1, 1, channels / self.groups))?
                .reshape((batch, 1, 1, 1, channels))
        };
        let parameter = |values: &Tensor| values.reshape((1, 1, 1, 1, channels));
        let scale = per_channel(&(variance + self.eps)?.sqrt()?.recip()?)?.broadcast_mul(&parameter(&self.weight)?)?;
        let shift = parameter(&self.bias)?.broadcast_sub(&(per_channel(&mean)? * &scale)?)?;
        Ok([scale, shift])
    }

    /// Forward pass (B, F, H, W, C) -> (B, F, H, W, C), without a SiLU.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [scale, shift] = self.tables(x)?;
        let wide = x.to_dtype(DType::F32)?.broadcast_mul(&scale)?.broadcast_add(&shift)?;
        wide.to_dtype(x.dtype())
    }
}

impl<S> Modulate<S> for GroupNorm {
    fn modulation(&self, x: &Tensor, _state: &S) -> Result<Modulation> {
        let [scale, shift] = self.tables(x)?;
        let rms_eps = None;
        Ok(Modulation { scale, shift, rms_eps })
    }
}
