//! Sums of contiguous numbers on the CPU, on all threads: f32, or bf16 with each sum rounded once.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, bail};
use half::bf16;
use rayon::prelude::*;

use super::bf16::line::{exact, nearest};
use super::f32_view::CHUNK;
use super::map::{Numbers, map, pieces};
use super::simd_math::wide;
use crate::process::allocations::compute;

/// Returns a + b for contiguous numbers of the same type.
pub fn added((a, a_layout): (&CpuStorage, &Layout), (b, b_layout): (&CpuStorage, &Layout)) -> Result<CpuStorage> {
    if a.dtype() != b.dtype() {
        bail!("ops add f32 or bf16, not {:?} and {:?}", a.dtype(), b.dtype());
    }
    let inputs = [(1, Numbers::new(a, a_layout)?), (1, Numbers::new(b, b_layout)?)];
    let pieces = pieces(a_layout.shape().elem_count(), 1);
    map(a.dtype(), inputs, (1, &pieces), |_, [a, b], y| sums(a, b, y))
}

/// Computes a += b for contiguous numbers of the same type.
pub fn add_to(a: (&mut CpuStorage, &Layout), (b, b_layout): (&CpuStorage, &Layout)) -> Result<()> {
    let [a_range, b_range] = [range(a.1)?, range(b_layout)?];
    match (a.0, b) {
        (CpuStorage::F32(a), CpuStorage::F32(b)) => {
            let pieces = a[a_range].par_chunks_mut(CHUNK).zip(b[b_range].par_chunks(CHUNK));
            compute(|| pieces.for_each(|(a, b)| increase(a, b)));
        }
        (CpuStorage::BF16(a), CpuStorage::BF16(b)) => {
            let pieces = a[a_range].par_chunks_mut(CHUNK).zip(b[b_range].par_chunks(CHUNK));
            compute(|| pieces.for_each(|(a, b)| narrow_increase(a, b)));
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
