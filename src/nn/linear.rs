//! `y = x W^T + b`, and the low-rank adapters planted on it: `y += scale (dropout(x) A^T) B^T`.  arXiv:2106.09685

use candle_core::{Result, Tensor};

use super::dropout::Dropout;
use super::weights::Weights;

/// A linear layer with whatever adapters its path calls for.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,       // (out, in)
    bias: Option<Tensor>, // (out)
    adapters: Vec<LowRank>,
}

/// One adapter of a linear layer.
#[derive(Debug, Clone)]
pub struct LowRank {
    pub a: Tensor, // (rank, in)
    pub b: Tensor, // (out, rank)
    pub scale: f64,
    /// Of an adapter that is being trained.
    pub dropout: Option<Dropout>,
}

impl LowRank {
    /// (rows, in) -> (rows, out). Adapters are kept in f32, whatever the frozen weights are.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.to_dtype(self.a.dtype())?;
        if let Some(dropout) = &self.dropout {
            x = dropout.forward(&x)?;
        }
        let low = x.matmul(&self.a.t()?)?; // (rows, rank)
        low.matmul(&self.b.t()?)? * self.scale // (rows, out)
    }
}

/// Reads `weight` (out, in) and `bias` (out).
pub fn linear(in_features: usize, out_features: usize, weights: Weights) -> Result<Linear> {
    Linear::new(in_features, out_features, true, weights)
}

/// Reads `weight` (out, in).
pub fn linear_no_bias(in_features: usize, out_features: usize, weights: Weights) -> Result<Linear> {
    Linear::new(in_features, out_features, false, weights)
}

impl Linear {
    /// Reads `weight` (out, in) and, where there is one, `bias` (out).
    pub fn new(in_features: usize, out_features: usize, bias: bool, weights: Weights) -> Result<Self> {
        Ok(Self {
            weight: weights.get((out_features, in_features), "weight")?,
            bias: bias.then(|| weights.get(out_features, "bias")).transpose()?,
            adapters: weights.adapters(in_features, out_features)?,
        })
    }

    /// (..., in) -> (..., out)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (dims, in_features) = (x.dims(), x.dim(candle_core::D::Minus1)?);
        let rows = x.elem_count() / in_features.max(1);
        let x2 = x.reshape((rows, in_features))?; // one product over all rows, not one for each of a batch
        let mut y = x2.matmul(&self.weight.t()?)?; // (rows, out)
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        for adapter in &self.adapters {
            y = (y + adapter.forward(&x2)?.to_dtype(x.dtype())?)?;
        }
        let out_features = y.dim(1)?;
        y.reshape([&dims[..dims.len() - 1], &[out_features]].concat())
    }
}
