//! `y = x W^T` for weights that are never trained or adapted.
//!
//! W^T is stored. The CPU's product packs its right matrix: it copies rows in one piece, but would gather the columns
//! of W number by number, a third of the product's time.
//!
//! Where matrices are lent block by block, W is transposed for each use: the same product, on the same numbers.
//!
//! On the CPU sums are in f32 whatever the weights' storage: a matrix is converted to f32 only while it is used. One in
//! few bits is decoded strip by strip.

use candle_core::{DType, Device, Result, Tensor};

use crate::nn::Weights;
use crate::nn::lent::Matrix;
use crate::ops::linear::Frozen;
use crate::ops::stored::Weight;

use super::transpose::transpose;

/// A frozen linear layer without bias.
#[derive(Debug, Clone)]
pub struct Projection {
    matrix: ProjectionMatrix,
}

#[derive(Debug, Clone)]
enum ProjectionMatrix {
    Transposed(Tensor), // (in, out)
    /// (out, in) in few bits or lent, and the type of products with it.
    Stored(Matrix, DType),
}

/// Returns the type in which products of weights stored as `dtype` are computed.
pub fn compute_dtype(dtype: DType, device: &Device) -> DType {
    if device.is_cpu() { DType::F32 } else { dtype }
}

impl Projection {
    /// Reads `weight` (out, in).
    pub fn new(in_features: usize, out_features: usize, weights: Weights) -> Result<Self> {
        let weight = match weights.matrix((out_features, in_features), "weight")? {
            Matrix::Own(Weight::Dense(weight)) => weight,
            other => {
                let dtype = compute_dtype(weights.dtype(), weights.device());
                let matrix = ProjectionMatrix::Stored(other, dtype);
                return Ok(Self { matrix });
            }
        };
        let weight = match weights.has_numbers() {
            true => transpose(&weight)?,
            false => weight.t()?,
        };
        Ok(Self {
            matrix: ProjectionMatrix::Transposed(weight),
        })
    }

    /// Forward pass (..., in) -> (..., out), in the dtype of the computation.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = match &self.matrix {
            ProjectionMatrix::Transposed(weight) => weight.clone(),
            ProjectionMatrix::Stored(matrix, dtype) => match matrix.whole()? {
                stored if stored.is_in_few_bits() => return Frozen::new(stored, None).forward(&x.to_dtype(*dtype)?),
                dense => transpose(&dense.dense(*dtype)?)?,
            },
        };
        let (in_features, out_features) = weight.dims2()?;
        let dtype = compute_dtype(weight.dtype(), weight.device());
        let shape = [&x.dims()[..x.rank() - 1], &[out_features]].concat();
        let rows = x.elem_count() / in_features.max(1);
        let x = x.to_dtype(dtype)?.reshape((rows, in_features))?; // one product over all rows
        let weight = weight.to_dtype(dtype)?;
        x.matmul(&weight)?.reshape(shape)
    }
}
