//! Views of candle's tensors as contiguous f32 or bf16, converted where they are stored as the other.

use std::borrow::Cow;

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::bf16::line::{exact_numbers, nearest_numbers};
use super::map::Zeros;
use crate::process::allocations::compute;

/// Numbers that one thread processes at a time.
pub const CHUNK: usize = 1 << 15;

/// Returns a contiguous tensor's numbers.
///
/// # Errors
/// Fails for types other than f32 and bf16, and for non-contiguous tensors.
pub fn f32_view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [f32]>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("an op needs a contiguous tensor, got {layout:?}");
    };
    match storage {
        CpuStorage::F32(numbers) => Ok(Cow::Borrowed(&numbers[start..end])),
        CpuStorage::BF16(numbers) => {
            let mut wide = vec![0.0; end - start];
            to_f32(&numbers[start..end], &mut wide);
            Ok(Cow::Owned(wide))
        }
        other => bail!("ops support f32 and bf16, not {:?}", other.dtype()),
    }
}

/// Returns a contiguous tensor's numbers in bf16.
///
/// # Errors
/// Same as [`f32_view`].
pub fn bf16_view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [bf16]>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("an op needs a contiguous tensor, got {layout:?}");
    };
    match storage {
        CpuStorage::BF16(numbers) => Ok(Cow::Borrowed(&numbers[start..end])),
        CpuStorage::F32(numbers) => {
            let mut narrow = bf16::zeros(end - start);
            to_bf16(&numbers[start..end], &mut narrow);
            Ok(Cow::Owned(narrow))
        }
        other => bail!("ops support f32 and bf16, not {:?}", other.dtype()),
    }
}

/// Converts bf16 to f32, up to the shorter length.
pub fn to_f32(narrow: &[bf16], wide: &mut [f32]) {
    let pairs = wide.par_chunks_mut(CHUNK).zip(narrow.par_chunks(CHUNK));
    compute(|| pairs.for_each(|(wide, narrow)| exact_numbers(narrow, wide)));
}

/// Rounds f32 to bf16, up to the shorter length.
pub fn to_bf16(wide: &[f32], narrow: &mut [bf16]) {
    let pairs = narrow.par_chunks_mut(CHUNK).zip(wide.par_chunks(CHUNK));
    compute(|| pairs.for_each(|(narrow, wide)| nearest_numbers(wide, narrow)));
}

/// Returns zeros in the storage of a tensor.
pub fn zeros(count: usize, dtype: DType) -> Result<CpuStorage> {
    match dtype {
        DType::F32 => Ok(CpuStorage::F32(vec![0.0; count])),
        DType::BF16 => Ok(CpuStorage::BF16(bf16::zeros(count))),
        other => bail!("ops support f32 and bf16, not {other:?}"),
    }
}

/// Returns a gradient on the CPU in the shape and type of its tensor.
pub fn like(numbers: Vec<f32>, tensor: &Tensor) -> Result<Tensor> {
    match tensor.dtype() {
        DType::BF16 => {
            let storage = Storage::Cpu(stored(numbers, DType::BF16)?);
            Ok(Tensor::from_storage(storage, tensor.shape(), BackpropOp::none(), false))
        }
        dtype => Tensor::from_vec(numbers, tensor.dims(), tensor.device())?.to_dtype(dtype),
    }
}

/// Numbers in the storage of a tensor.
pub fn stored(numbers: Vec<f32>, dtype: DType) -> Result<CpuStorage> {
    match dtype {
        DType::F32 => Ok(CpuStorage::F32(numbers)),
        DType::BF16 => {
            let mut narrow = bf16::zeros(numbers.len());
            to_bf16(&numbers, &mut narrow);
            Ok(CpuStorage::BF16(narrow))
        }
        other => bail!("ops support f32 and bf16, not {other:?}"),
    }
}

/// Calls `compute` with the numbers of contiguous tensors on the CPU.
pub fn numbers_of<const N: usize, T>(tensors: [&Tensor; N], compute: impl FnOnce([&[f32]; N]) -> T) -> Result<T> {
    let guards = tensors.map(|tensor| tensor.storage_and_layout());
    let mut numbers = Vec::with_capacity(N);
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => numbers.push(f32_view(storage, layout)?),
            _ => bail!("a CPU op needs tensors on the CPU"),
        }
    }
    let slices: [&[f32]; N] = std::array::from_fn(|i| &*numbers[i]);
    Ok(compute(slices))
}

/// Calls `compute` with the numbers of contiguous tensors on the CPU, in bf16.
pub fn narrow_numbers_of<const N: usize, T>(
    tensors: [&Tensor; N],
    compute: impl FnOnce([&[bf16]; N]) -> T,
) -> Result<T> {
    let guards = tensors.map(|tensor| tensor.storage_and_layout());
    let mut numbers = Vec::with_capacity(N);
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => numbers.push(bf16_view(storage, layout)?),
            _ => bail!("a CPU op needs tensors on the CPU"),
        }
    }
    let slices: [&[bf16]; N] = std::array::from_fn(|i| &*numbers[i]);
    Ok(compute(slices))
}
