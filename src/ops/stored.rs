//! Frozen matrices in few bits, decoded row by row where a product needs them.
//!
//! A product reads its matrix in strips of about a million numbers, in the forward pass and again in the backward pass. So a
//! layer takes the memory of its stored form and, while it runs on the CPU, one strip in f32. On other devices the layer
//! is decoded whole while it runs.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};

use super::f32_view::{f32_view, numbers_of, to_f32};
use super::gemm::Matrix;

/// Numbers of a matrix that are converted to f32 at a time; a row is not cut.
const STRIP: usize = 1 << 20;

/// A frozen matrix (out, in) in a stored form, decoded by rows.
pub trait StoredMatrix: std::fmt::Debug + Send + Sync {
    /// Returns (out, in).
    fn shape(&self) -> (usize, usize);

    /// Returns the bytes that it takes in memory.
    fn bytes(&self) -> usize;

    /// Returns the device that rows are decoded to.
    fn device(&self) -> &Device;

    /// Decodes the rows a..b, dense (b - a, in). Rounded once, from f32, to other types.
    ///
    /// # Errors
    /// Fails for rows beyond the last one, and for types that are not numbers with a point.
    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor>;
}

/// Matrix (out, in) of a frozen layer.
#[derive(Debug, Clone)]
pub enum Weight {
    /// In f32 or bf16.
    Dense(Tensor),
    /// In few bits.
    Stored(Arc<dyn StoredMatrix>),
}

impl From<Tensor> for Weight {
    fn from(dense: Tensor) -> Self {
        Self::Dense(dense)
    }
}

impl Weight {
    /// Returns (out, in).
    ///
    /// # Errors
    /// Fails for a tensor that is no matrix.
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(dense) => dense.dims2(),
            Self::Stored(stored) => Ok(stored.shape()),
        }
    }

    /// Returns the whole matrix in this type.
    ///
    /// # Errors
    /// Fails if it cannot be decoded.
    pub fn dense(&self, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Dense(dense) => dense.to_dtype(dtype),
            Self::Stored(stored) => stored.rows(0..stored.shape().0, dtype),
        }
    }

    /// Calls `each` with the matrix, on the CPU, in f32 in strips of rows: the first row's index, and the rows.
    pub(super) fn strips(&self, mut each: impl FnMut(usize, Matrix)) -> Result<()> {
        let (out_features, features) = self.shape()?;
        let rows = (STRIP / features.max(1)).clamp(1, out_features.max(1));
        let dense = match self {
            Self::Dense(dense) => dense,
            Self::Stored(stored) => {
                for first in (0..out_features).step_by(rows) {
                    let end = (first + rows).min(out_features);
                    let strip = stored.rows(first..end, DType::F32)?;
                    numbers_of([&strip], |[numbers]| {
                        each(first, Matrix::new(numbers, end - first, features));
                    })?;
                }
                return Ok(());
            }
        };
        let (storage, layout) = dense.storage_and_layout();
        match &*storage {
            Storage::Cpu(CpuStorage::BF16(numbers)) => {
                let Some((start, end)) = layout.contiguous_offsets() else {
                    bail!("a linear layer's matrix is not contiguous, {layout:?}");
                };
                let mut wide = vec![0.0; rows * features];
                for (i, strip) in numbers[start..end].chunks((rows * features).max(1)).enumerate() {
                    let wide = &mut wide[..strip.len()];
                    to_f32(strip, wide);
                    each(i * rows, Matrix::new(wide, strip.len() / features, features));
                }
            }
            Storage::Cpu(storage) => each(0, Matrix::new(&f32_view(storage, layout)?, out_features, features)),
            _ => bail!("a linear layer's matrix is on another device than its input"),
        }
        Ok(())
    }
}
