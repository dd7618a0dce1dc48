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

use super::activation::silu;
use super::device::has_kernels;
use super::map::{Numbers, map, map_like, pieces};
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
        let numbers = Numbers::new(x, layout)?;
        let mut dims = layout.dims().to_vec();
        let width = half(&dims)?;
        *dims.last_mut().expect("half found a last side") = width;
        let pieces = pieces(numbers.len() / (2 * width), 2 * width);
        let y = map(x.dtype(), [(2 * width, numbers)], (width, &pieces), |_, [x], y| {
            for (y, x) in y.chunks_mut(width).zip(x.chunks(2 * width)) {
                let (a, b) = x.split_at(width);
                forward(a, b, y);
            }
        })?;
        Ok((y, dims.into()))
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
        let (grad, pieces) = (grad.contiguous()?, pieces(x.elem_count() / (2 * width), 2 * width));
        let inputs = [(2 * width, x), (width, &grad)];
        let dx = map_like(x, inputs, (2 * width, &pieces), |_, [x, grad], dx| {
            let pairs = dx.chunks_mut(2 * width).zip(x.chunks(2 * width));
            for ((dx, x), grad) in pairs.zip(grad.chunks(width)) {
                let (da, db) = dx.split_at_mut(width);
                let (a, b) = x.split_at(width);
                back(a, b, grad, da, db);
            }
        })?;
        Ok(Some(dx))
    }
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
