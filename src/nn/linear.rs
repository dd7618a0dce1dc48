//! Linear layers `y = x W^T + b`, with low-rank adapters: `y += scale (dropout(x) A^T) B^T`.  arXiv:2106.09685
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use vtrain::nn::{Linear, Load, Weights};
//!
//! // Reads `proj.weight` (3, 4) and `proj.bias` (3), here of random weights.
//! let weights = Weights::random(&Load::new(DType::F32, &Device::Cpu)).pp("proj");
//! let proj = Linear::new(4, 3, true, weights.clone())?;
//!
//! let x = Tensor::zeros((2, 5, 4), DType::F32, &Device::Cpu)?; // (..., in)
//! let y = proj.forward(&x)?; // (..., out)
//! assert_eq!(y.dims(), [2, 5, 3]);
//! let bias = weights.get(3, "bias")?;
//! assert_eq!(y.get(0)?.get(0)?.to_vec1::<f32>()?, bias.to_vec1::<f32>()?);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Result, Tensor};

use super::adapter::LoraLayer;
use super::dropout::Dropout;
use super::shards::Matrix;
use super::weights::Weights;
use crate::ops::linear::{self, Frozen};

/// A frozen linear layer, with the adapters for its path.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Matrix, // (out, in)
    bias: Option<Tensor>,
    adapters: Vec<LoraLayer>,
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
    /// Reads `weight` (out, in) and `bias` (out) if `bias` is true.
    pub fn new(in_features: usize, out_features: usize, bias: bool, weights: Weights) -> Result<Self> {
        Ok(Self {
            weight: weights.matrix((out_features, in_features), "weight")?,
            bias: bias.then(|| weights.bias(out_features)).transpose()?,
            adapters: weights.adapters(&[out_features, in_features])?,
        })
    }

    /// Reads a convolution whose stride equals its kernel, as a linear layer of the numbers under the kernel: `weight`
    /// (out, in channels, sides of the kernel...) and `bias` (out) if `bias` is true.
    pub fn patches(
        channels: usize,
        out_features: usize,
        kernel: &[usize],
        bias: bool,
        weights: Weights,
    ) -> Result<Self> {
        let shape = [&[out_features, channels], kernel].concat();
        Ok(Self {
            weight: Matrix::Own(weights.get(shape.as_slice(), "weight")?.flatten_from(1)?.into()),
            bias: bias.then(|| weights.get(out_features, "bias")).transpose()?,
            adapters: weights.adapters(&shape)?,
        })
    }

    /// Returns the number of outputs.
    pub fn out_features(&self) -> Result<usize> {
        Ok(self.weight.dims2()?.0)
    }

    /// Returns the floating-point operations of a forward pass of `rows` rows, without adapters.
    pub fn flops(&self, rows: usize) -> Result<f64> {
        let (out_features, in_features) = self.weight.dims2()?;
        Ok(2.0 * rows as f64 * in_features as f64 * out_features as f64)
    }

    /// Forward pass (..., in) -> (..., out)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let frozen = Frozen {
            weight: self.weight.whole()?,
            bias: self.bias.clone(),
        };
        if let [LoraLayer { a, b, scale, dropout }] = &self.adapters[..] {
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
