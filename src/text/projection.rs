//! `y = x W^T` for weights that nothing trains and no adapter touches.
//!
//! W^T is what is kept. The CPU's product copies its right matrix to where it works: rows it copies in one piece, while
//! it would gather the columns of a W number by number, at a third of the product's time.
//!
//! On the CPU sums are in f32 whatever the weights' storage: a matrix is widened while it is in use, and only then.

use candle_core::{DType, Device, Result, Tensor};

use crate::nn::Weights;

use super::transpose::transpose;

/// A frozen linear layer without bias.
#[derive(Debug, Clone)]
pub struct Projection {
    weight: Tensor, // (in, out)
}

/// What products of weights stored as `dtype` are computed in.
pub fn compute_dtype(dtype: DType, device: &Device) -> DType {
    if device.is_cpu() { DType::F32 } else { dtype }
}

impl Projection {
    /// Reads `weight` (out, in).
    pub fn new(in_features: usize, out_features: usize, weights: Weights) -> Result<Self> {
        let weight = weights.get((out_features, in_features), "weight")?;
        let weight = match weights.has_numbers() {
            true => transpose(&weight)?,
            false => weight.t()?,
        };
        Ok(Self { weight })
    }

    /// (..., in) -> (..., out), in the dtype of the computation.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (in_features, out_features) = self.weight.dims2()?;
        let dtype = compute_dtype(self.weight.dtype(), self.weight.device());
        let shape = [&x.dims()[..x.rank() - 1], &[out_features]].concat();
        let rows = x.elem_count() / in_features.max(1);
        let x = x.to_dtype(dtype)?.reshape((rows, in_features))?; // one product over all rows
        let weight = self.weight.to_dtype(dtype)?;
        x.matmul(&weight)?.reshape(shape)
    }
}
