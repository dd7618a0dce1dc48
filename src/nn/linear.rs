//! `y = x W^T + b`, and the low-rank adapters planted on it: `y += scale (dropout(x) A^T) B^T`.  arXiv:2106.09685

use candle_core::{D, Result, Tensor};

use super::dropout::Dropout;
use super::shards::Matrix;
use super::weights::Weights;
use crate::ops::linear::{self, Frozen};

/// A linear layer, frozen, with whatever adapters its path calls for.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Matrix, // (out, in)
    bias: Option<Tensor>,
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
    /// (..., in) -> (..., out). Adapters are kept in f32, whatever the frozen weights are.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let in_features = x.dim(D::Minus1)?;
        let mut rows = x
            .reshape((x.elem_count() / in_features.max(1), in_features))?
            .to_dtype(self.a.dtype())?;
        if let Some(dropout) = &self.dropout {
            rows = dropout.forward(&rows)?;
        }
        let low = rows.matmul(&self.a.t()?)?; // (rows, rank)
        let y = (low.matmul(&self.b.t()?)? * self.scale)?; // (rows, out)
        let dims = [&x.dims()[..x.rank() - 1], &[y.dim(1)?]].concat();
        y.reshape(dims)?.to_dtype(x.dtype())
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
            weight: weights.matrix((out_features, in_features), "weight")?,
            bias: bias.then(|| weights.get(out_features, "bias")).transpose()?,
            adapters: weights.adapters(in_features, out_features)?,
        })
    }

    /// (..., in) -> (..., out)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let frozen = Frozen {
            weight: self.weight.whole()?,
            bias: self.bias.clone(),
        };
        if let [LowRank { a, b, scale, dropout }] = &self.adapters[..] {
            let (scale, dropped) = (*scale, dropout.as_ref().and_then(Dropout::mask));
            return frozen.forward_dropping(x, linear::LowRank { a, b, scale }, dropped);
        }
        let mut y = frozen.forward(x)?;
        for adapter in &self.adapters {
            y = (y + adapter.forward(x)?)?;
        }
        Ok(y)
    }
}
