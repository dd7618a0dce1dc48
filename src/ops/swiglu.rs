//! SwiGLU, a single pass forward and a single pass backward: the gated product of the two halves of x = [a, b],
//!
//! ```text
//! y = a b / (1 + e^-b)                                                          arXiv:2002.05202
//! ```
//!
//! Equals `SwiGLU` of diffusers behind its projection.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::silu;
use super::device::has_kernels;
use super::f32_view::{CHUNK, f32_view, like, numbers_of, stored};
use super::simd_math::{exp, wide};
use super::tape::{Reads, apply1};

/// Returns the gated product of x (.., 2F): (.., F).
///
/// # Errors
/// Fails for an odd last side.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    let width = half(x.dims())?;
    if x.elem_count() == 0 {
        return x.narrow(D::Minus1, 0, width);
    }
    if !has_kernels(x) {
        let gate = silu(&x.narrow(D::Minus1, width, width)?)?;
        return x.narrow(D::Minus1, 0, width)? * gate;
    }
    let reads = Reads {
        inputs: [true],
        output: false,
    };
    apply1(&x.contiguous()?, SwiGlu, reads)
}

/// Returns half of the last side.
fn half(dims: &[usize]) -> Result<usize> {
    match dims.last() {
        Some(width) if width.is_multiple_of(2) => Ok(width / 2),
        _ => bail!("a gated product of {dims:?}, whose last side has no halves"),
    }
}

struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let numbers = f32_view(x, layout)?;
        let mut dims = layout.dims().to_vec();
        let width = half(&dims)?;
        *dims.last_mut().expect("half found a last side") = width;
        let mut y = vec![0.0; numbers.len() / 2];
        let rows = rows(width);
        let pieces = y.par_chunks_mut(rows * width).zip(numbers.par_chunks(2 * rows * width));
        pieces.for_each(|(y, x)| {
            for (y, x) in y.chunks_mut(width).zip(x.chunks(2 * width)) {
                let (a, b) = x.split_at(width);
                forward(a, b, y);
            }
        });
        Ok((stored(y, x.dtype())?, dims.into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.forward_on(x, layout)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.back_on(x, &grad.contiguous()?).map(Some);
        }
        let width = half(x.dims())?;
        let dx = numbers_of([x, &grad.contiguous()?], |[x, grad]| {
            let mut dx = vec![0.0; x.len()];
            let rows = rows(width);
            let pieces = dx
                .par_chunks_mut(2 * rows * width)
                .zip(x.par_chunks(2 * rows * width))
                .zip(grad.par_chunks(rows * width));
            pieces.for_each(|((dx, x), grad)| {
                let pairs = dx.chunks_mut(2 * width).zip(x.chunks(2 * width));
                for ((dx, x), grad) in pairs.zip(grad.chunks(width)) {
                    let (da, db) = dx.split_at_mut(width);
                    let (a, b) = x.split_at(width);
                    back(a, b, grad, da, db);
                }
            });
            dx
        })?;
        Ok(Some(like(dx, x)?))
    }
}

/// Rows that a thread takes at a time.
fn rows(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

wide! {
    fn forward(a: &[f32], b: &[f32], y: &mut [f32]) {
        for (y, (a, b)) in y.iter_mut().zip(a.iter().zip(b)) {
            *y = a * b / (1.0 + exp(-b));
        }
    }
}

wide! {
    /// da = g b s, db = g a s (1 + b (1 - s)) with s = 1 / (1 + e^-b)
    fn back(a: &[f32], b: &[f32], grad: &[f32], da: &mut [f32], db: &mut [f32]) {
        for (((a, b), grad), (da, db)) in a.iter().zip(b).zip(grad).zip(da.iter_mut().zip(db)) {
            let s = 1.0 / (1.0 + exp(-b));
            *da = grad * b * s;
            *db = grad * a * s * b.mul_add(1.0 - s, 1.0);
        }
    }
}
