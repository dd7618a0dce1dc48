//! Frozen matrices in few bits, as other programs store them: a format a file.
//!
//! | format | module | bits a weight |
//! |---|---|---|
//! | bitsandbytes nf4 and fp4, with and without double quantisation | [`bitsandbytes_4bit`] | 4.13 to 4.5 |
//! | bitsandbytes LLM.int8() | [`bitsandbytes_int8`] | 8 |
//! | fp8, plain and with scales (ComfyUI, musubi-tuner) | [`float8`] | 8 to 8.5 |
//! | torchao int8 and float8 | [`torchao`] | 8 to 9 |
//! | GGUF's Q8_0, Q4_0 to Q5_1, Q2_K to Q6_K, F32, F16, BF16 | [`ggml`] | 2.6 to 32 |
//!
//! A format is a [`Decode`]: numbers in f32, from any place on, on the CPU. [`Stored`] makes a matrix of it, which
//! [`crate::ops::linear`] multiplies by. On a GPU its parts lie there as they are, and a kernel of `decode.cu` decodes
//! them to the same numbers, bit by bit.
//! [`detect`] finds the stored forms of a checkpoint, [`super::gguf`] reads GGUF's own files, [`quantize`] stores what is
//! dense.

pub mod bitsandbytes_4bit;
pub mod bitsandbytes_int8;
#[cfg(feature = "cuda")]
mod cuda;
pub mod detect;
pub mod float8;
pub mod ggml;
pub mod launch;
pub mod layout;
pub mod origin;
mod part;
pub mod quantize;
mod scales;
pub mod torchao;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::ops::bytes::Bytes;
#[cfg(feature = "cuda")]
use crate::ops::stored::DeviceForm;
use crate::ops::stored::{MovableMatrix, StoredMatrix, Weight};

pub use part::Parts;

use launch::KernelForm;

/// Numbers that one thread decodes at a time: whole blocks of every format whose rows are whole blocks.
const CHUNK: usize = 1 << 14;

/// A format of stored numbers. The numbers of a matrix (out, in) count row by row.
pub trait Decode: Clone + Send + Sync + 'static {
    /// Name of the format, for messages.
    fn name(&self) -> String;

    /// Returns the bytes that it takes in memory.
    fn bytes(&self) -> usize;

    /// Decodes as many numbers as there is space for, from number `first` of the matrix on.
    fn decode(&self, first: usize, numbers: &mut [f32]);

    /// Returns the format as a kernel reads it.
    fn kernel_form(&self) -> KernelForm;

    /// Returns all that grows with the matrix, to be read or put elsewhere.
    fn parts(&mut self) -> Vec<&mut Bytes>;
}

/// A matrix (out, in) in a format.
pub struct Stored<F> {
    format: F,
    shape: (usize, usize),
    device: Device,
}

impl<F: Decode> Stored<F> {
    /// Matrix of this shape, all of whose numbers `format` has; rows are decoded to `device`.
    pub(super) fn new(format: F, shape: (usize, usize), device: &Device) -> Self {
        Self {
            format,
            shape,
            device: device.clone(),
        }
    }

    /// Moves it to its device's memory.
    ///
    /// # Errors
    /// Fails if there is no room.
    pub fn placed(self) -> Result<Arc<dyn StoredMatrix>> {
        #[cfg(feature = "cuda")]
        if self.device.is_cuda() {
            return Ok(Arc::new(cuda::OnGpu::new(&self)?));
        }
        Ok(Arc::new(self))
    }

    /// Returns the format, with its parts.
    pub fn format(&self) -> &F {
        &self.format
    }

    /// Returns the format alone.
    pub fn into_format(self) -> F {
        self.format
    }
}

impl<F: Decode> StoredMatrix for Stored<F> {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn bytes(&self) -> usize {
        self.format.bytes()
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        let (out_features, features) = self.shape;
        ensure_rows(&range, out_features)?;
        let (first, rows) = (range.start * features, range.len());
        let mut numbers = vec![0.0; rows * features];
        let pieces = numbers.par_chunks_mut(CHUNK).enumerate();
        pieces.for_each(|(i, piece)| self.format.decode(first + i * CHUNK, piece));
        Tensor::from_vec(numbers, (rows, features), &Device::Cpu)?
            .to_dtype(dtype)?
            .to_device(&self.device)
    }

    fn movable(&self) -> Option<&dyn MovableMatrix> {
        Some(self)
    }
}

impl<F: Decode> MovableMatrix for Stored<F> {
    fn parts(&self) -> Vec<Bytes> {
        self.format
            .clone()
            .parts()
            .into_iter()
            .map(|part| part.clone())
            .collect()
    }

    fn over(&self, parts: Vec<Bytes>, device: &Device) -> Result<Weight> {
        let mut format = self.format.clone();
        let mut places = format.parts();
        if places.len() != parts.len() {
            bail!(
                "{} parts for the {} of {}",
                parts.len(),
                places.len(),
                self.format.name()
            );
        }
        for (place, part) in places.iter_mut().zip(parts) {
            **place = part;
        }
        Ok(Weight::Stored(Self::new(format, self.shape, device).placed()?))
    }

    #[cfg(feature = "cuda")]
    fn device_form(&self, device: &Device) -> Option<(Arc<dyn DeviceForm>, Vec<Bytes>)> {
        let (form, parts) = cuda::SlotForm::new(self, device);
        Some((Arc::new(form), parts))
    }
}

impl<F: Decode> fmt::Debug for Stored<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.format.name(), self.shape)
    }
}

/// Checks that a matrix has these rows.
fn ensure_rows(range: &Range<usize>, out_features: usize) -> Result<()> {
    if range.start > range.end || range.end > out_features {
        bail!("rows {range:?} of a matrix of {out_features}");
    }
    Ok(())
}

/// Cuts `numbers`, the first of which is number `first`, where blocks of `size` numbers end, and calls `each` with a
/// block's index, the index of a piece's first number, and the piece.
fn by_blocks(first: usize, size: usize, mut numbers: &mut [f32], mut each: impl FnMut(usize, usize, &mut [f32])) {
    let mut at = first;
    while !numbers.is_empty() {
        let count = (size - at % size).min(numbers.len());
        let (piece, rest) = std::mem::take(&mut numbers).split_at_mut(count);
        each(at / size, at, piece);
        (at, numbers) = (at + count, rest);
    }
}

/// Numbers of a dense matrix (out, in) that is to be stored, in f32, with its shape.
///
/// # Errors
/// Fails for a tensor that is no matrix, and for NaN and infinities, which no format holds.
fn numbers_to_store(dense: &Tensor) -> Result<(Vec<f32>, (usize, usize))> {
    let shape = dense.dims2()?;
    let numbers: Vec<f32> = dense
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()?;
    if let Some(at) = numbers.par_iter().position_first(|x| !x.is_finite()) {
        let (row, column) = (at / shape.1, at % shape.1);
        bail!(
            "a matrix {shape:?} with {} in row {row}, column {column} cannot be stored in few bits",
            numbers[at]
        );
    }
    Ok((numbers, shape))
}
