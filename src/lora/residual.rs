//! Adapters that start at what a matrix loses when it is stored in few bits: LoftQ with one step and without data.
//! arXiv:2310.08659
//!
//! With `R = W - decoded(W)`, `U diag(s) Vᵀ` its largest singular values and c the factor of the adapters' output,
//!
//! ```text
//! B = U sqrt(s / c),  A = sqrt(s / c) Vᵀ,  so that  c B A ~ R
//! ```
//!
//! Where there is nothing left to approximate, A starts as it does without, at random, and B at zero: a pair of zeros would
//! never learn.

use candle_core::{DType, Device, Result, Tensor};

use super::svd::{self, Svd};
use crate::ops::stored::StoredMatrix;
use crate::rng::Rng;

/// Adapter of a matrix, with the matrix' relative error, by Frobenius norms.
#[derive(Debug)]
pub struct Residual {
    /// Matrix A (rank, in), f32 in main memory.
    pub a: Tensor,
    /// Matrix B (out, rank), f32 in main memory.
    pub b: Tensor,
    /// Relative error of the stored matrix.
    pub before: f64,
    /// Relative error of the stored matrix with the adapter.
    pub after: f64,
}

/// Singular values below this share of the matrix' norm are rounding.
const NOTHING: f64 = 1e-9;

impl Residual {
    /// Adapter of the matrix that was `dense` (out, in) before it was `stored`, for an output that is multiplied by `scale`.
    ///
    /// # Errors
    /// Fails for matrices of different shapes, and if a device is out of memory.
    pub fn new(dense: &Tensor, stored: &dyn StoredMatrix, rank: usize, scale: f64, rng: &mut Rng) -> Result<Self> {
        let (out_features, in_features) = stored.shape();
        let dense = dense.to_dtype(DType::F32)?.to_device(stored.device())?;
        let lost = (&dense - stored.rows(0..out_features, DType::F32)?)?;
        let whole = norm(&dense)?;
        drop(dense);
        let Svd { u, s, v } = svd::leading(&lost, rank, rng)?;
        let bound = 1.0 / (in_features as f64).sqrt();
        let (mut a, mut b) = (Vec::with_capacity(rank * in_features), vec![0f32; out_features * rank]);
        for i in 0..rank {
            let known = s.get(i).is_some_and(|s| *s > NOTHING * whole);
            if !known {
                a.extend(rng.uniform(-bound, bound, in_features));
                continue;
            }
            let root = (s[i] / scale).sqrt();
            a.extend(v[i].iter().map(|v| (root * v) as f32));
            for (row, u) in u[i].iter().enumerate() {
                b[row * rank + i] = (root * u) as f32;
            }
        }
        let a = Tensor::from_vec(a, (rank, in_features), &Device::Cpu)?;
        let b = Tensor::from_vec(b, (out_features, rank), &Device::Cpu)?;
        let added = (b.to_device(lost.device())?.matmul(&a.to_device(lost.device())?)? * scale)?;
        let share = |error: f64| if whole > 0.0 { error / whole } else { 0.0 };
        Ok(Self {
            before: share(norm(&lost)?),
            after: share(norm(&(lost - added)?)?),
            a,
            b,
        })
    }
}

/// Frobenius norm.
fn norm(matrix: &Tensor) -> Result<f64> {
    let rows = matrix.sqr()?.sum(1)?.to_dtype(DType::F64)?;
    Ok(rows.sum_all()?.to_scalar::<f64>()?.sqrt())
}
