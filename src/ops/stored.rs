//! Frozen matrices in few bits, decoded row by row where a product needs them.
//!
//! A product reads its matrix in strips of about a million numbers, in the forward pass and again in the backward pass. So a
//! layer takes the memory of its stored form and, while it runs on the CPU, one strip in f32. On other devices the layer
//! is decoded whole while it runs.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use half::bf16;

use super::bf16::line::SIDE;
use super::bf16::pack::Rows;
use super::bytes::{Bytes, Origin, numbers_in};
#[cfg(feature = "cuda")]
use super::cuda::slot::DeviceSlot;
use super::f32_view::{f32_view, narrow_numbers_of, numbers_of, to_bf16, to_f32};
use super::gemm::Matrix;
use crate::process::allocations::{self, Event};

/// Numbers of a matrix that are converted to f32 at a time; a row is not cut.
const STRIP: usize = 1 << 20;

/// Form of a matrix that is an outline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlined {
    /// In f32, which is used as it is.
    Wide,
    /// In bf16, which the CPU turns to f32.
    Narrow,
    /// In few bits, which are decoded.
    FewBits,
}

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

    /// Returns what a matrix without numbers, whose products are 0, stands for; None for one with numbers.
    fn outline(&self) -> Option<Outlined> {
        None
    }

    /// Returns it as a matrix whose bytes may lie elsewhere; None if they cannot.
    fn movable(&self) -> Option<&dyn MovableMatrix> {
        None
    }

    /// Returns it as a matrix whose bytes are its numbers; None if they are in few bits.
    fn plain(&self) -> Option<&PlainMatrix> {
        None
    }
}

/// A stored matrix whose bytes may lie elsewhere.
pub trait MovableMatrix {
    /// Returns its parts.
    fn parts(&self) -> Vec<Bytes>;

    /// Returns the same matrix with its parts elsewhere, in main memory, to be used on `device`.
    ///
    /// # Errors
    /// Fails if there is no room on the device.
    fn over(&self, parts: Vec<Bytes>, device: &Device) -> Result<Weight>;

    /// Returns it as kernels of a GPU read it: its form, and the parts that lie in the GPU's memory. None for one whose bytes
    /// are its numbers.
    #[cfg(feature = "cuda")]
    fn device_form(&self, _device: &Device) -> Option<(Arc<dyn DeviceForm>, Vec<Bytes>)> {
        None
    }
}

/// A matrix without its bytes, as kernels of a GPU read it.
#[cfg(feature = "cuda")]
pub trait DeviceForm: Send + Sync {
    /// Returns the matrix with its parts at these places of a slot.
    ///
    /// # Errors
    /// Fails for another number of parts.
    fn at(&self, slot: &Arc<DeviceSlot>, places: &[Range<usize>]) -> Result<Weight>;
}

/// A matrix (out, in) in f32 or bf16, of bytes that may lie anywhere in main memory.
#[derive(Debug, Clone)]
pub struct PlainMatrix {
    bytes: Bytes,
    dtype: DType,
    shape: (usize, usize),
}

impl PlainMatrix {
    /// Matrix with the numbers of a tensor; `origin` is where they lie in a file.
    ///
    /// # Errors
    /// Fails for a tensor that is no matrix.
    pub fn new(dense: &Tensor, origin: Option<Origin>) -> Result<Self> {
        use safetensors::View;
        Ok(Self {
            bytes: Bytes::from(View::data(dense).into_owned()).with_origin(origin),
            dtype: dense.dtype(),
            shape: dense.dims2()?,
        })
    }

    /// Returns the type of its numbers.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

impl StoredMatrix for PlainMatrix {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        let row = self.shape.1 * self.dtype.size_in_bytes();
        let Some(bytes) = self.bytes.get(range.start * row..range.end * row) else {
            bail!("rows {range:?} of a matrix of {}", self.shape.0);
        };
        Tensor::from_raw_buffer(bytes, self.dtype, &[range.len(), self.shape.1], &Device::Cpu)?.to_dtype(dtype)
    }

    fn movable(&self) -> Option<&dyn MovableMatrix> {
        Some(self)
    }

    fn plain(&self) -> Option<&PlainMatrix> {
        Some(self)
    }
}

impl MovableMatrix for PlainMatrix {
    fn parts(&self) -> Vec<Bytes> {
        vec![self.bytes.clone()]
    }

    fn over(&self, parts: Vec<Bytes>, device: &Device) -> Result<Weight> {
        let Ok([bytes]) = <[Bytes; 1]>::try_from(parts) else {
            bail!("a dense matrix has one part");
        };
        if !device.is_cpu() {
            let shape = [self.shape.0, self.shape.1];
            return Ok(Tensor::from_raw_buffer(&bytes, self.dtype, &shape, device)?.into());
        }
        Ok(Weight::Stored(Arc::new(Self { bytes, ..self.clone() })))
    }
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

    /// Returns true for a matrix in few bits.
    pub fn is_in_few_bits(&self) -> bool {
        match self {
            Self::Dense(_) => false,
            Self::Stored(stored) => stored.plain().is_none(),
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

    /// True if products in bf16 lose nothing that the matrix has: in bf16, or in few bits.
    pub(super) fn is_narrow(&self) -> bool {
        let stored = match self {
            Self::Dense(dense) => return dense.dtype() == DType::BF16,
            Self::Stored(stored) => stored,
        };
        match (stored.outline(), stored.plain()) {
            (Some(form), _) => form != Outlined::Wide,
            (None, Some(plain)) => plain.dtype == DType::BF16,
            (None, None) => true,
        }
    }

    /// Calls `each` with the matrix, on the CPU, in bf16: the first row's index, and the rows. All at once if it is stored
    /// so, else decoded in strips that begin at multiples of 32.
    pub(super) fn narrow_strips(&self, mut each: impl FnMut(usize, Rows)) -> Result<()> {
        let (out_features, features) = self.shape()?;
        let stored = match self {
            Self::Dense(dense) => {
                let dense = [dense];
                return narrow_numbers_of(dense, |[numbers]| each(0, Rows::new(numbers, out_features, features)));
            }
            Self::Stored(stored) => stored,
        };
        if let Some(plain) = stored.plain().filter(|plain| plain.dtype == DType::BF16) {
            each(0, Rows::new(numbers_in(&plain.bytes), out_features, features));
            return Ok(());
        }
        if stored.outline() == Some(Outlined::Narrow) {
            each(0, Rows::outline(out_features, features));
            return Ok(());
        }
        let rows = (STRIP / features.max(1))
            .next_multiple_of(SIDE)
            .min(out_features.max(1));
        let firsts = (0..out_features).step_by(rows);
        if stored.outline().is_some() {
            allocations::mention(Event::Decodes(out_features * features));
            let _narrow = std::hint::black_box(Vec::<bf16>::with_capacity(rows * features));
            for first in firsts {
                let count = rows.min(out_features - first);
                drop(std::hint::black_box(Vec::<f32>::with_capacity(count * features)));
                each(first, Rows::outline(count, features));
            }
            return Ok(());
        }
        let mut narrow = vec![bf16::ZERO; rows * features];
        for first in firsts {
            let count = rows.min(out_features - first);
            let strip = stored.rows(first..first + count, DType::F32)?;
            let narrow = &mut narrow[..count * features];
            numbers_of([&strip], |[numbers]| to_bf16(numbers, narrow))?;
            each(first, Rows::new(narrow, count, features));
        }
        Ok(())
    }

    /// Calls `each` with the matrix, on the CPU, in f32 in strips of rows: the first row's index, and the rows.
    pub(super) fn strips(&self, mut each: impl FnMut(usize, Matrix)) -> Result<()> {
        let (out_features, features) = self.shape()?;
        let rows = (STRIP / features.max(1)).clamp(1, out_features.max(1));
        let mut strips_of_bf16 = |numbers: &[bf16]| {
            let mut wide = vec![0.0; rows * features];
            for (i, strip) in numbers.chunks((rows * features).max(1)).enumerate() {
                let wide = &mut wide[..strip.len()];
                to_f32(strip, wide);
                each(i * rows, Matrix::new(wide, strip.len() / features, features));
            }
        };
        let dense = match self {
            Self::Dense(dense) => dense,
            Self::Stored(stored) if stored.outline().is_some() => {
                let form = stored.outline();
                if form == Some(Outlined::FewBits) {
                    allocations::mention(Event::Decodes(out_features * features));
                }
                if form != Some(Outlined::Wide) {
                    drop(std::hint::black_box(Vec::<f32>::with_capacity(rows * features)));
                }
                return Ok(());
            }
            Self::Stored(stored) => {
                match stored.plain().map(|plain| (plain.dtype, &plain.bytes)) {
                    Some((DType::BF16, bytes)) => strips_of_bf16(numbers_in(bytes)),
                    Some((DType::F32, bytes)) => each(0, Matrix::new(numbers_in(bytes), out_features, features)),
                    _ => {
                        for first in (0..out_features).step_by(rows) {
                            let end = (first + rows).min(out_features);
                            let strip = stored.rows(first..end, DType::F32)?;
                            numbers_of([&strip], |[numbers]| {
                                each(first, Matrix::new(numbers, end - first, features));
                            })?;
                        }
                    }
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
                strips_of_bf16(&numbers[start..end]);
            }
            Storage::Cpu(storage) => each(0, Matrix::new(&f32_view(storage, layout)?, out_features, features)),
            _ => bail!("a linear layer's matrix is on another device than its input"),
        }
        Ok(())
    }
}
