//! Layer and RMS normalisation, with sums in f32 whatever the storage.
//!
//! Layer norm: (x - mean) / sqrt(var + eps) * weight + bias over the last axis (`torch.nn.LayerNorm`). RMS norm: x /
//! sqrt(mean(x^2) + eps) * weight over the last axis (`torch.nn.RMSNorm`, arXiv:1910.07467). Either may be modulated:
//! norm(x) (1 + scale) + shift, with a scale and a shift per part of a sequence.

use candle_core::{D, DType, Result, Tensor};

use super::weights::Weights;
use crate::ops::norm;

pub use crate::ops::norm::NormKind;

/// Norm over the last axis.
#[derive(Debug, Clone)]
pub struct Norm {
    kind: NormKind,
    gain: Tensor,   // (1, 1, D) f32
    offset: Tensor, // (1, 1, D) f32
    eps: f64,
}

/// Modulation of a norm, usually by the timestep.
#[derive(Debug, Clone)]
pub struct Modulation {
    /// Shift (B or 1, P, D).
    pub shift: Tensor,
    /// Scale (B or 1, P, D).
    pub scale: Tensor,
}

impl Norm {
    /// Loads a norm of either kind, with or without parameters (`elementwise_affine`).
    pub fn new(kind: NormKind, affine: bool, width: usize, eps: f64, weights: Weights) -> Result<Self> {
        match kind {
            kind if !affine => Self::plain(kind, width, eps, &weights),
            NormKind::Layer => Self::layer(width, eps, weights),
            NormKind::Rms => Self::rms(width, eps, weights),
        }
    }

    /// Loads a layer norm with `weight` and `bias`.
    pub fn layer(width: usize, eps: f64, weights: Weights) -> Result<Self> {
        let mut norm = Self::rms(width, eps, weights.clone())?;
        norm.kind = NormKind::Layer;
        norm.offset = table(&weights.get(width, "bias")?)?;
        Ok(norm)
    }

    /// Loads an RMS norm with `weight`.
    pub fn rms(width: usize, eps: f64, weights: Weights) -> Result<Self> {
        let gain = table(&weights.get(width, "weight")?)?;
        Ok(Self {
            kind: NormKind::Rms,
            offset: gain.zeros_like()?,
            gain,
            eps,
        })
    }

    /// Norm without parameters (`elementwise_affine=False`); `weights` only gives the device.
    pub fn plain(kind: NormKind, width: usize, eps: f64, weights: &Weights) -> Result<Self> {
        let gain = Tensor::ones((1, 1, width), DType::F32, weights.device())?;
        Ok(Self {
            kind,
            offset: gain.zeros_like()?,
            gain,
            eps,
        })
    }

    /// Forward pass (B, ..., D) -> (B, ..., D)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let rows = x.dims()[1..x.rank().max(2) - 1].iter().product();
        self.over(&[rows]).forward(x, &self.gain, &self.offset)
    }

    /// Modulated forward pass of x (B, S, D) -> (B, S, D), where S is the sum of the rows of each part.
    pub fn modulated(&self, x: &Tensor, modulation: &Modulation, parts: &[usize]) -> Result<Tensor> {
        let scale = (modulation.scale.to_dtype(DType::F32)? + 1.0)?;
        let gain = scale.broadcast_mul(&self.gain)?; // (B or 1, P, D)
        let offset = scale
            .broadcast_mul(&self.offset)?
            .broadcast_add(&modulation.shift.to_dtype(DType::F32)?)?; // (B or 1, P, D)
        self.over(parts).forward(x, &gain, &offset)
    }

    /// Forward pass of x (B, S, D), times a gain (B or 1, P, D) -> (B, S, D), where S is the sum of the rows of each part.
    pub fn scaled(&self, x: &Tensor, gain: &Tensor, parts: &[usize]) -> Result<Tensor> {
        let gain = gain.to_dtype(DType::F32)?;
        let offset = self.offset.broadcast_mul(&gain)?; // (B or 1, P, D)
        self.over(parts).forward(x, &gain.broadcast_mul(&self.gain)?, &offset)
    }

    fn over(&self, parts: &[usize]) -> norm::Norm {
        norm::Norm {
            kind: self.kind,
            eps: self.eps,
            parts: parts.to_vec(),
        }
    }
}

/// Converts (D) -> (1, 1, D) f32
fn table(parameter: &Tensor) -> Result<Tensor> {
    parameter
        .to_dtype(DType::F32)?
        .reshape((1, 1, parameter.dim(D::Minus1)?))
}
