//! What ops see of candle's tensors: contiguous numbers in f32, widened where they are stored as bf16.

use std::borrow::Cow;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

/// Numbers that one thread takes at a time.
pub const CHUNK: usize = 1 << 15;

/// A contiguous tensor's numbers.
///
/// # Errors
/// Another type than f32 and bf16, or gaps between the numbers.
pub fn widened<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [f32]>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("an op was given a tensor with gaps, {layout:?}");
    };
    match storage {
        CpuStorage::F32(numbers) => Ok(Cow::Borrowed(&numbers[start..end])),
        CpuStorage::BF16(numbers) => {
            let mut wide = vec![0.0; end - start];
            widen(&numbers[start..end], &mut wide);
            Ok(Cow::Owned(wide))
        }
        other => bail!("ops know f32 and bf16, not {:?}", other.dtype()),
    }
}

/// bf16 as f32, of as many numbers as both have.
pub fn widen(narrow: &[bf16], wide: &mut [f32]) {
    let pairs = wide.par_chunks_mut(CHUNK).zip(narrow.par_chunks(CHUNK));
    pairs.for_each(|(wide, narrow)| {
        for (wide, narrow) in wide.iter_mut().zip(narrow) {
            *wide = f32::from_bits(u32::from(narrow.to_bits()) << 16); // bf16 is the upper half
        }
    });
}

/// Numbers as a tensor stores them.
pub fn stored(numbers: Vec<f32>, dtype: DType) -> Result<CpuStorage> {
    match dtype {
        DType::F32 => Ok(CpuStorage::F32(numbers)),
        DType::BF16 => {
            let mut narrow = vec![bf16::ZERO; numbers.len()];
            let pairs = narrow.par_chunks_mut(CHUNK).zip(numbers.par_chunks(CHUNK));
            pairs.for_each(|(narrow, wide)| {
                for (narrow, wide) in narrow.iter_mut().zip(wide) {
                    *narrow = bf16::from_f32(*wide);
                }
            });
            Ok(CpuStorage::BF16(narrow))
        }
        other => bail!("ops know f32 and bf16, not {other:?}"),
    }
}

/// Lets `compute` see the numbers of contiguous tensors on the CPU.
pub fn numbers_of<const N: usize, T>(tensors: [&Tensor; N], compute: impl FnOnce([&[f32]; N]) -> T) -> Result<T> {
    let guards = tensors.map(|tensor| tensor.storage_and_layout());
    let mut numbers = Vec::with_capacity(N);
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => numbers.push(widened(storage, layout)?),
            _ => bail!("an op for the CPU was given a tensor on a device"),
        }
    }
    let slices: [&[f32]; N] = std::array::from_fn(|i| &*numbers[i]);
    Ok(compute(slices))
}
