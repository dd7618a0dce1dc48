//! Layer and RMS normalisation, with sums in f32 whatever the storage.
//!
//! Layer norm: (x - mean) / sqrt(var + eps) * weight + bias over the last axis (`torch.nn.LayerNorm`).
//! RMS norm: x / sqrt(mean(x^2) + eps) * weight over the last axis (`torch.nn.RMSNorm`, arXiv:1910.07467).
//! Either may be modulated: norm(x) (1 + scale) + shift, with a scale and a shift for each part of a sequence.

use candle_core::{D, DType, Result, Tensor};

use super::weights::Weights;
use crate::ops::norm;

pub use crate::ops::norm::Kind;

/// Over the last axis.
#[derive(Debug, Clone)]
pub struct Norm {
    kind: Kind,
    gain: Tensor,   // (1, 1, D) f32
    offset: Tensor, // (1, 1, D) f32
    eps: f64,
}

/// What modulates a norm, mostly told by the timestep.
#[derive(Debug, Clone)]
pub struct Modulation {
    pub shift: Tensor, // (B or 1, P, D)
    pub scale: Tensor, // (B or 1, P, D)
}

impl Norm {
    /// Of either kind, with parameters or without (`elementwise_affine`).
    pub fn new(kind: Kind, affine: bool, width: usize, eps: f64, weights: Weights) -> Result<Self> {
        match kind {
            kind if !affine => Self::plain(kind, width, eps, &weights),
            Kind::Layer => Self::layer(width, eps, weights),
            Kind::Rms => Self::rms(width, eps, weights),
        }
    }

    /// A layer norm that reads `weight` and `bias`.
    pub fn layer(width: usize, eps: f64, weights: Weights) -> Result<Self> {
        let mut norm = Self::rms(width, eps, weights.clone())?;
        norm.kind = Kind::Layer;
        norm.offset = table(&weights.get(width, "bias")?)?;
        Ok(norm)
    }

    /// An RMS norm that reads `weight`.
    pub fn rms(width: usize, eps: f64, weights: Weights) -> Result<Self> {
        let gain = table(&weights.get(width, "weight")?)?;
        Ok(Self {
            kind: Kind::Rms,
            offset: gain.zeros_like()?,
            gain,
            eps,
        })
    }

    /// Without parameters (`elementwise_affine=False`); `weights` only says on which device.
    pub fn plain(kind: Kind, width: usize, eps: f64, weights: &Weights) -> Result<Self> {
        let gain = Tensor::ones((1, 1, width), DType::F32, weights.device())?;
        Ok(Self {
            kind,
            offset: gain.zeros_like()?,
            gain,
            eps,
        })
    }

    /// (B, ..., D) -> (B, ..., D)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let rows = x.dims()[1..x.rank().max(2) - 1].iter().product();
        self.over(&[rows]).forward(x, &self.gain, &self.offset)
    }

    /// x (B, S, D) -> (B, S, D), where S is the sum of the rows of each part.
    pub fn modulated(&self, x: &Tensor, modulation: &Modulation, parts: &[usize]) -> Result<Tensor> {
        let scale = (modulation.scale.to_dtype(DType::F32)? + 1.0)?;
        let gain = scale.broadcast_mul(&self.gain)?; // (B or 1, P, D)
        let offset = scale
            .broadcast_mul(&self.offset)?
            .broadcast_add(&modulation.shift.to_dtype(DType::F32)?)?; // (B or 1, P, D)
        self.over(parts).forward(x, &gain, &offset)
    }

    fn over(&self, parts: &[usize]) -> norm::Norm {
        norm::Norm {
            kind: self.kind,
            eps: self.eps,
            parts: parts.to_vec(),
        }
    }
}

/// (D) -> (1, 1, D) f32
fn table(parameter: &Tensor) -> Result<Tensor> {
    parameter
        .to_dtype(DType::F32)?
        .reshape((1, 1, parameter.dim(D::Minus1)?))
}
