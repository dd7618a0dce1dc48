//! Views of candle's tensors as contiguous f32, converted where they are stored as bf16.

use std::borrow::Cow;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

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

/// Converts bf16 to f32, up to the shorter length.
pub fn to_f32(narrow: &[bf16], wide: &mut [f32]) {
    let pairs = wide.par_chunks_mut(CHUNK).zip(narrow.par_chunks(CHUNK));
    pairs.for_each(|(wide, narrow)| {
        for (wide, narrow) in wide.iter_mut().zip(narrow) {
            *wide = f32::from_bits(u32::from(narrow.to_bits()) << 16); // bf16 is the upper half
        }
    });
}

/// Numbers in the storage of a tensor.
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
