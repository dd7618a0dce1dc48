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

use candle_core::{D, Error, Result, Tensor};

use super::adapter::LoraLayer;
use super::lent::Matrix;
use super::weights::Weights;
use crate::ops::dropout::Mask;
use crate::ops::linear::{self, Frozen};
use crate::ops::tape::Output;

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
        self.open()?.forward(x, 0, Output::Read)
    }

    /// Returns the layer with its matrix at hand and the current masks of dropout, for a forward pass and its backward pass.
    pub fn open(&self) -> Result<OpenLinear> {
        let masks = self.adapters.iter().map(|adapter| adapter.dropout.as_ref()?.mask());
        Ok(OpenLinear {
            frozen: Frozen::new(self.weight.whole()?, self.bias.clone()),
            masks: masks.collect(),
            adapters: self.adapters.clone(),
        })
    }
}

/// A layer whose matrix is at hand: one that is sharded, as long as this lives.
#[derive(Debug, Clone)]
pub struct OpenLinear {
    frozen: Frozen,
    adapters: Vec<LoraLayer>,
    /// Mask of each adapter's input, if dropout is active.
    masks: Vec<Option<Mask>>,
}

impl OpenLinear {
    /// Returns the number of outputs.
    pub fn out_features(&self) -> Result<usize> {
        Ok(self.frozen.weight.shape()?.0)
    }

    /// Returns the adapters' matrices that are trained.
    pub fn variables(&self) -> impl Iterator<Item = &Tensor> {
        let matrices = self.adapters.iter().flat_map(|adapter| [&adapter.a, &adapter.b]);
        matrices.filter(|matrix| matrix.track_op())
    }

    /// True if some rows at a time give the same bits. Several adapters are sums in candle's operations, over all rows.
    pub fn is_row_wise(&self) -> bool {
        self.adapters.len() <= 1
    }

    /// Forward pass (..., in) -> (..., out) of rows of which the first is row `first` of the whole input.
    pub fn forward(&self, x: &Tensor, first: usize, output: Output) -> Result<Tensor> {
        if let ([LoraLayer { a, b, scale, .. }], [mask]) = (&self.adapters[..], &self.masks[..]) {
            let mask = mask.map(|mask| Ok::<_, Error>(mask.after(first * x.dim(D::Minus1)?)));
            let adapter = linear::LowRank { a, b, scale: *scale };
            return self.frozen.forward_dropping_for(x, adapter, mask.transpose()?, output);
        }
        let mut y = self.frozen.forward_for(x, output)?;
        for adapter in &self.adapters {
            y = (y + adapter.forward(x)?)?;
        }
        Ok(y)
    }
}
