//! SwiGLU, a single pass forward and a single pass backward: the gated product of the two halves of x = [a, b],
//!
//! ```text
//! y = a b / (1 + e^-b)                                                          arXiv:2002.05202
//! ```
//!
//! Equals `SwiGLU` of diffusers behind its projection.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::silu;
use super::device::has_kernels;
use super::f32_view::{CHUNK, f32_view, numbers_of, stored};
use super::simd_math::{exp, wide};
use super::tape::{Reads, apply1};

/// Returns the gated product of x (.., 2F): (.., F). On a GPU, its SiLU and a product.
///
/// # Errors
/// Fails for an odd last side.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    let width = half(x.dims())?;
    if x.elem_count() == 0 {
        return x.narrow(D::Minus1, 0, width);
    }
    if !has_kernels(x) || !x.device().is_cpu() {
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

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        bail!("swiglu has no kernel for a GPU")
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
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
        let dx = Tensor::from_vec(dx, x.dims(), x.device())?;
        Ok(Some(dx.to_dtype(x.dtype())?))
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
