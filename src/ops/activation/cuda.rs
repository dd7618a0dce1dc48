//! Activations on a GPU.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};

use super::Activation;
use crate::ops::cuda::{self, Kernels, kernels};

const KERNELS: Kernels = kernels!("activation");

impl Activation {
    pub(super) fn forward_on(self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let shape = layout.shape();
        let y = cuda::fresh(x.device(), shape.elem_count(), x.dtype())?;
        let (x_at, y_at) = (cuda::address(x, layout)?, cuda::first(&y)?);
        let launch = self.launch(x_at, None, y_at, shape.elem_count(), x.dtype())?;
        KERNELS.launch(x.device(), &launch)?;
        Ok((y, shape.clone()))
    }

    /// Returns the gradient of x.
    pub(super) fn back_on(self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let device = x.device().as_cuda_device()?;
        let (x, grad) = (x.contiguous()?, grad.contiguous()?);
        let dx = cuda::fresh_tensor(device, x.dims(), x.dtype())?;
        let [x_at, grad_at, dx_at] = [cuda::address_of(&x)?, cuda::address_of(&grad)?, cuda::address_of(&dx)?];
        let launch = self.launch(x_at, Some(grad_at), dx_at, x.elem_count(), x.dtype())?;
        KERNELS.launch(device, &launch)?;
        Ok(dx)
    }
}
