//! Layer and RMS normalisation, with sums in f32 whatever the storage.
//!
//! `LayerNorm`: (x - mean) / sqrt(var + eps) * weight + bias over the last axis (torch.nn.LayerNorm).
//! `RmsNorm`: x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv:1910.07467).

use candle_core::{D, DType, Result, Tensor};

use super::weights::Weights;

/// Over the last axis; both parameters are optional (`elementwise_affine=False`).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Option<Tensor>, // (D)
    bias: Option<Tensor>,   // (D)
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`.
    pub fn new(width: usize, eps: f64, weights: Weights) -> Result<Self> {
        Ok(Self {
            weight: Some(weights.get(width, "weight")?),
            bias: Some(weights.get(width, "bias")?),
            eps,
        })
    }

    /// Without parameters.
    pub fn plain(eps: f64) -> Self {
        Self {
            weight: None,
            bias: None,
            eps,
        }
    }

    /// (..., D) -> (..., D)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x32 = x.to_dtype(DType::F32)?;
        let centered = x32.broadcast_sub(&x32.mean_keepdim(D::Minus1)?)?;
        let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
        let mut y = centered.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        if let Some(weight) = &self.weight {
            y = y.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
        }
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.to_dtype(DType::F32)?)?;
        }
        y.to_dtype(x.dtype())
    }
}

/// Over the last axis.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor, // (D)
    eps: f64,
}

impl RmsNorm {
    /// Reads `weight`.
    pub fn new(width: usize, eps: f64, weights: Weights) -> Result<Self> {
        Ok(Self {
            weight: weights.get(width, "weight")?,
            eps,
        })
    }

    /// (..., D) -> (..., D)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x32 = x.to_dtype(DType::F32)?;
        let mean = x32.sqr()?.mean_keepdim(D::Minus1)?;
        let y = x32.broadcast_div(&(mean + self.eps)?.sqrt()?)?;
        y.broadcast_mul(&self.weight.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
    }
}
