//! Chain rule over a part of a graph: continues from the gradients of its outputs.

use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::f32_view::stored;

/// An output of a part, with its gradient.
#[derive(Debug, Clone)]
pub struct Cotangent {
    /// Output of the part.
    pub output: Tensor,
    /// Gradient of the output, in its shape.
    pub gradient: Tensor,
}

/// Returns the gradients of everything the outputs were computed from, or None if none of it is trained.
///
/// Equal to the gradients of `sum(output * gradient)`, which is not computed on the CPU.
pub fn vjp(given: &[Cotangent]) -> Result<Option<GradStore>> {
    let mut sum: Option<Tensor> = None;
    for Cotangent { output, gradient } in given.iter().filter(|given| given.output.track_op()) {
        if output.dims() != gradient.dims() {
            bail!("an output {:?} with a gradient {:?}", output.dims(), gradient.dims());
        }
        let term = match output.device().is_cpu() || cfg!(feature = "cuda") {
            true => output.apply_op1(Due(gradient.clone()))?,
            false => (output * gradient)?.sum_all()?,
        };
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    sum.map(|sum| sum.backward()).transpose()
}

/// A scalar whose gradient is the given one. Its own is 1, as a term of the sum above.
struct Due(Tensor);

impl CustomOp1 for Due {
    fn name(&self) -> &'static str {
        "due"
    }

    fn cpu_fwd(&self, output: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((stored(vec![0.0], output.dtype())?, Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, output: &candle_core::CudaStorage, _: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendDevice;
        let scalar = Shape::from(());
        Ok((output.device().zeros_impl(&scalar, output.dtype())?, scalar))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
