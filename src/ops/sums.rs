//! Sums of contiguous numbers on the CPU, on all threads: f32, or bf16 with each sum rounded once.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, bail};
use half::bf16;
use rayon::prelude::*;

use super::bf16::line::{exact, nearest};
use super::f32_view::CHUNK;
use super::simd_math::wide;

/// Returns a + b for contiguous numbers of the same type.
pub fn added((a, a_layout): (&CpuStorage, &Layout), (b, b_layout): (&CpuStorage, &Layout)) -> Result<CpuStorage> {
    let [a_range, b_range] = [range(a_layout)?, range(b_layout)?];
    match (a, b) {
        (CpuStorage::F32(a), CpuStorage::F32(b)) => {
            let (a, b) = (&a[a_range], &b[b_range]);
            let mut y = vec![0.0; a.len()];
            let pieces = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK));
            let pieces = pieces.zip(b.par_chunks(CHUNK));
            pieces.for_each(|((y, a), b)| sums(a, b, y));
            Ok(CpuStorage::F32(y))
        }
        (CpuStorage::BF16(a), CpuStorage::BF16(b)) => {
            let (a, b) = (&a[a_range], &b[b_range]);
            let mut y = vec![bf16::ZERO; a.len()];
            let pieces = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK));
            let pieces = pieces.zip(b.par_chunks(CHUNK));
            pieces.for_each(|((y, a), b)| narrow_sums(a, b, y));
            Ok(CpuStorage::BF16(y))
        }
        (a, b) => bail!("ops add f32 or bf16, not {:?} and {:?}", a.dtype(), b.dtype()),
    }
}

/// Computes a += b for contiguous numbers of the same type.
pub fn add_to(a: (&mut CpuStorage, &Layout), (b, b_layout): (&CpuStorage, &Layout)) -> Result<()> {
    let [a_range, b_range] = [range(a.1)?, range(b_layout)?];
    match (a.0, b) {
        (CpuStorage::F32(a), CpuStorage::F32(b)) => {
            let pieces = a[a_range].par_chunks_mut(CHUNK).zip(b[b_range].par_chunks(CHUNK));
            pieces.for_each(|(a, b)| increase(a, b));
        }
        (CpuStorage::BF16(a), CpuStorage::BF16(b)) => {
            let pieces = a[a_range].par_chunks_mut(CHUNK).zip(b[b_range].par_chunks(CHUNK));
            pieces.for_each(|(a, b)| narrow_increase(a, b));
        }
        (a, b) => bail!("ops add f32 or bf16, not {:?} and {:?}", a.dtype(), b.dtype()),
    }
    Ok(())
}

fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("an op needs a contiguous tensor, got {layout:?}"),
    }
}

wide! {
    fn sums(a: &[f32], b: &[f32], y: &mut [f32]) {
        for (y, (a, b)) in y.iter_mut().zip(a.iter().zip(b)) {
            *y = a + b;
        }
    }
}

wide! {
    fn narrow_sums(a: &[bf16], b: &[bf16], y: &mut [bf16]) {
        for (y, (a, b)) in y.iter_mut().zip(a.iter().zip(b)) {
            *y = nearest(exact(*a) + exact(*b));
        }
    }
}

wide! {
    fn increase(a: &mut [f32], b: &[f32]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

wide! {
    fn narrow_increase(a: &mut [bf16], b: &[bf16]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a = nearest(exact(*a) + exact(*b));
        }
    }
}
