//! `y = a + b`: residual connections without a gate. Both gradients equal that of y; nothing is saved for the backward
//! pass.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::device::has_kernels;
use super::sums::added;
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
