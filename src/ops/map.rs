//! Outputs computed from rows of contiguous tensors on the CPU, a piece at a time, in f32: bf16 is widened before and rounded
//! after it within the caches.
//!
//! A piece is some thousand numbers. Cutting does not depend on the number of threads.

use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::bf16::line::{exact_numbers, nearest};
use crate::process::allocations;

/// Numbers of a piece: those of all inputs and of the output stay in the caches of a core.
const PIECE: usize = 1 << 12;

/// Contiguous numbers of a tensor on the CPU.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    /// f32.
    Wide(&'a [f32]),
    /// bf16.
    Narrow(&'a [bf16]),
}

/// Rows of numbers: their width, and all of them.
pub type Rows<'a> = (usize, Numbers<'a>);

impl<'a> Numbers<'a> {
    /// Views a tensor's storage.
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16, and for non-contiguous tensors.
    pub fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("an op needs a contiguous tensor, got {layout:?}");
        };
        match storage {
            CpuStorage::F32(numbers) => Ok(Self::Wide(&numbers[start..end])),
            CpuStorage::BF16(numbers) => Ok(Self::Narrow(&numbers[start..end])),
            other => bail!("ops support f32 and bf16, not {:?}", other.dtype()),
        }
    }

    /// Returns how many they are.
    pub fn len(&self) -> usize {
        match self {
            Self::Wide(numbers) => numbers.len(),
            Self::Narrow(numbers) => numbers.len(),
        }
    }

    /// Returns some of them in f32, in the buffer if they are stored otherwise.
    fn wide<'b>(&'b self, range: Range<usize>, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        match self {
            Self::Wide(numbers) => &numbers[range],
            Self::Narrow(numbers) => {
                buffer.resize(range.len(), 0.0);
                exact_numbers(&numbers[range], buffer);
                buffer
            }
        }
    }
}

/// Cuts rows of this width, the wider one of input and output, into pieces.
pub fn pieces(rows: usize, width: usize) -> Vec<Range<usize>> {
    let step = rows_of_piece(width);
    (0..rows)
        .step_by(step)
        .map(|first| first..rows.min(first + step))
        .collect()
}

/// Returns the rows of a piece.
pub fn rows_of_piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// Returns `y`, rows of `width` numbers in this type, of which `compute(i, inputs, y)` writes each number of the i-th piece: the
/// same rows of all inputs. `pieces` are all rows in their order.
///
/// # Errors
/// Fails for types other than f32 and bf16.
pub fn map<const N: usize>(
    dtype: DType,
    inputs: [Rows; N],
    (width, pieces): (usize, &[Range<usize>]),
    compute: impl Fn(usize, [&[f32]; N], &mut [f32]) + Sync,
) -> Result<CpuStorage> {
    let narrow = |(_, numbers): &Rows| matches!(numbers, Numbers::Narrow(_));
    let buffered = inputs.iter().filter(|rows| narrow(rows)).map(|(width, _)| *width);
    let buffered = buffered.sum::<usize>() + if dtype == DType::BF16 { width } else { 0 };
    // Of full pieces, however few rows there are: what is recorded of few rows is to stand for many.
    let widest = inputs.iter().map(|(width, _)| *width).fold(width, usize::max);
    if buffered > 0 {
        allocations::elsewhere(0, buffered * rows_of_piece(widest) * size_of::<f32>(), usize::MAX);
    }
    match dtype {
        DType::F32 => Ok(CpuStorage::F32(map_wide(inputs, (width, pieces), compute))),
        DType::BF16 => Ok(CpuStorage::BF16(written(width, pieces, |buffers, i, place| {
            let mut y = std::mem::take(&mut buffers.output);
            y.resize(place.len(), 0.0);
            compute(i, buffers.read(&inputs, &pieces[i]), &mut y);
            for (place, y) in place.iter_mut().zip(&y) {
                place.write(nearest(*y));
            }
            buffers.output = y;
        }))),
        other => bail!("ops support f32 and bf16, not {other:?}"),
    }
}

/// Returns [`map`] in f32.
pub fn map_wide<const N: usize>(
    inputs: [Rows; N],
    (width, pieces): (usize, &[Range<usize>]),
    compute: impl Fn(usize, [&[f32]; N], &mut [f32]) + Sync,
) -> Vec<f32> {
    written(width, pieces, |buffers, i, place| {
        place.iter_mut().for_each(|number| _ = number.write(0.0));
        // SAFETY: all numbers of the place have just been written, which brought it into the caches.
        let y = unsafe { std::slice::from_raw_parts_mut(place.as_mut_ptr().cast(), place.len()) };
        compute(i, buffers.read(&inputs, &pieces[i]), y);
    })
}

/// Returns rows of zeros, which all threads write.
pub fn zero_rows(rows: usize, width: usize) -> Vec<f32> {
    map_wide([], (width, &pieces(rows, width)), |_, [], _| ())
}

/// Returns rows that are all the same, which all threads write.
pub fn same_rows(rows: usize, row: &[f32]) -> Vec<f32> {
    let width = row.len();
    map_wide([], (width, &pieces(rows, width)), |_, [], y| {
        y.chunks_exact_mut(width.max(1)).for_each(|y| y.copy_from_slice(row));
    })
}

/// Returns [`map`] of contiguous tensors on the CPU, with the widths of their rows, in the shape and type of `like`.
///
/// # Errors
/// Same as [`map`].
pub fn map_like<const N: usize>(
    like: &Tensor,
    tensors: [(usize, &Tensor); N],
    output: (usize, &[Range<usize>]),
    compute: impl Fn(usize, [&[f32]; N], &mut [f32]) + Sync,
) -> Result<Tensor> {
    let guards = tensors.map(|(width, tensor)| (width, tensor.storage_and_layout()));
    let mut inputs = Vec::with_capacity(N);
    for (width, (storage, layout)) in &guards {
        match &**storage {
            Storage::Cpu(storage) => inputs.push((*width, Numbers::new(storage, layout)?)),
            _ => bail!("a CPU op needs tensors on the CPU"),
        }
    }
    let inputs: [Rows; N] = std::array::from_fn(|i| inputs[i]);
    let storage = Storage::Cpu(map(like.dtype(), inputs, output, compute)?);
    Ok(Tensor::from_storage(storage, like.shape(), BackpropOp::none(), false))
}

/// Returns so many numbers in the order of `run(i)`: those from the i-th on that lie together, one at least.
pub fn gathered<'a, T: Zeros + 'a>(count: usize, run: impl Fn(usize) -> &'a [T] + Sync) -> Vec<T> {
    let pieces = pieces(count, 1);
    written(1, &pieces, |_: &mut Buffers<0>, i, mut place| {
        while !place.is_empty() {
            let from = run(pieces[i].end - place.len());
            let (to, rest) = place.split_at_mut(from.len().min(place.len()));
            for (to, from) in to.iter_mut().zip(from) {
                to.write(*from);
            }
            place = rest;
        }
    })
}

/// Numbers of outputs.
pub trait Zeros: Copy + Send + Sync {
    /// Returns zeros as the allocator gives them: those of a vector of `bf16::ZERO` are written one by one.
    fn zeros(count: usize) -> Vec<Self>;
}

impl Zeros for f32 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }
}

impl Zeros for f64 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }
}

impl Zeros for bf16 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }
}

impl Zeros for f16 {
    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }
}

/// Buffers of a thread.
struct Buffers<const N: usize> {
    inputs: [Vec<f32>; N],
    output: Vec<f32>,
}

impl<const N: usize> Buffers<N> {
    fn new() -> Self {
        Self {
            inputs: std::array::from_fn(|_| Vec::new()),
            output: Vec::new(),
        }
    }

    /// Returns some rows of the inputs.
    fn read<'b>(&'b mut self, inputs: &'b [Rows<'b>; N], rows: &Range<usize>) -> [&'b [f32]; N] {
        let mut buffers = self.inputs.iter_mut();
        std::array::from_fn(|i| {
            let (width, numbers) = &inputs[i];
            assert!(
                rows.end * width <= numbers.len(),
                "an input of fewer rows than the output"
            );
            let buffer = buffers.next().expect("there are as many buffers as inputs");
            numbers.wide(rows.start * width..rows.end * width, buffer)
        })
    }
}

/// Returns numbers that `write(buffers, i, place)` writes, all of the place of the i-th piece.
fn written<T: Zeros, const N: usize>(
    width: usize,
    pieces: &[Range<usize>],
    write: impl Fn(&mut Buffers<N>, usize, &mut [MaybeUninit<T>]) + Sync,
) -> Vec<T> {
    let count = pieces.iter().map(Range::len).sum::<usize>() * width;
    if allocations::is_recording() {
        return T::zeros(count); // a record is of memory alone
    }
    let mut numbers = Vec::with_capacity(count);
    let mut rest = &mut numbers.spare_capacity_mut()[..count];
    let mut places = Vec::with_capacity(pieces.len());
    for rows in pieces {
        let (place, others) = rest.split_at_mut(rows.len() * width);
        places.push(place);
        rest = others;
    }
    let places = places.into_par_iter().enumerate();
    places.for_each_init(Buffers::new, |buffers, (i, place)| write(buffers, i, place));
    // SAFETY: there is room for all of them, and each was written in its place.
    unsafe { numbers.set_len(count) };
    numbers
}
