//! `y = a + b`: residual connections without a gate. Both gradients equal that of y; nothing is saved for the backward
//! pass.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::bf16::line::{exact, nearest};
use super::device::has_kernels;
use super::f32_view::CHUNK;
use super::simd_math::wide;
use super::tape::{Reads, apply2};

/// Returns a + b for tensors of the same shape and type.
///
/// # Errors
/// Fails if shapes or types differ; on the CPU, for types other than f32 and bf16.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() || a.dtype() != b.dtype() {
        let (a_type, b_type) = (a.dtype(), b.dtype());
        bail!("{:?} in {a_type:?} + {:?} in {b_type:?}", a.dims(), b.dims());
    }
    if a.elem_count() == 0 || !has_kernels(a) {
        return a + b;
    }
    let reads = Reads {
        inputs: [false; 2],
        output: false,
    };
    apply2([&a.contiguous()?, &b.contiguous()?], Add, reads)
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((added((a, a_layout), (b, b_layout))?, a_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &candle_core::CudaStorage,
        a_layout: &Layout,
        b: &candle_core::CudaStorage,
        b_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        cuda::forward((a, a_layout), (b, b_layout))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let of = |input: &Tensor| input.track_op().then(|| grad.clone());
        Ok((of(a), of(b)))
    }
}

/// Returns a + b for contiguous numbers of the same type.
pub(super) fn added(
    (a, a_layout): (&CpuStorage, &Layout),
    (b, b_layout): (&CpuStorage, &Layout),
) -> Result<CpuStorage> {
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
pub(super) fn add_to(a: (&mut CpuStorage, &Layout), (b, b_layout): (&CpuStorage, &Layout)) -> Result<()> {
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
