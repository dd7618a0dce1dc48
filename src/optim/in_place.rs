//! In-place update of a CPU tensor by another one, in a single pass.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, bail};

/// Numbers that one thread processes at a time.
pub const CHUNK: usize = 1 << 14;

/// Checks that [`in_place`] supports this tensor.
pub fn possible(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// Checks that a kernel of a GPU can update this tensor in place.
#[cfg(feature = "cuda")]
pub fn possible_on_gpu(tensor: &Tensor) -> bool {
    tensor.device().is_cuda() && tensor.dtype() == DType::F32 && tensor.is_contiguous()
}

/// Runs `pass` on all elements of `target` and `source`, in the same order.
///
/// `target` is f32 on the CPU; tensors that share its storage change as well. No gradient flows through.
///
/// # Errors
/// Fails for another type or device, different shapes, and shared storage.
pub fn in_place(target: &Tensor, source: &Tensor, pass: impl FnMut(&mut [f32], &[f32])) -> Result<()> {
    if target.dims() != source.dims() {
        bail!("in place: {:?} and {:?}", target.dims(), source.dims());
    }
    target.inplace_op2(&source.contiguous()?, &Pass(RefCell::new(pass)))
}

struct Pass<F>(RefCell<F>);

impl<F: FnMut(&mut [f32], &[f32])> InplaceOp2 for Pass<F> {
    fn name(&self) -> &'static str {
        "in place"
    }

    fn cpu_fwd(&self, target: &mut CpuStorage, at: &Layout, source: &CpuStorage, from: &Layout) -> Result<()> {
        let (CpuStorage::F32(target), CpuStorage::F32(source)) = (target, source) else {
            bail!("in place: only f32");
        };
        let (Some((start, end)), Some((first, last))) = (at.contiguous_offsets(), from.contiguous_offsets()) else {
            bail!("in place: the tensors must be contiguous");
        };
        (self.0.borrow_mut())(&mut target[start..end], &source[first..last]);
        Ok(())
    }
}
