//! SwiGLU on a GPU.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};

use super::launch::swiglu;
use super::{SwiGlu, half};
use crate::ops::cuda::{self, Kernels, kernels};

const KERNELS: Kernels = kernels!("swiglu");

impl SwiGlu {
    pub(super) fn forward_on(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let width = half(&dims)?;
        *dims.last_mut().expect("half found a last side") = width;
        let shape = Shape::from(dims);
        let rows = shape.elem_count() / width;
        let y = cuda::fresh(x.device(), shape.elem_count(), x.dtype())?;
        let launch = swiglu(
            cuda::address(x, layout)?,
            None,
            cuda::first(&y)?,
            [rows, width],
            x.dtype(),
        )?;
        KERNELS.launch(x.device(), &launch)?;
        Ok((y, shape))
    }

    /// Returns the gradient of x.
    pub(super) fn back_on(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (device, width) = (x.device().as_cuda_device()?, half(x.dims())?);
        let dx = cuda::fresh_tensor(device, x.dims(), x.dtype())?;
        let [x_at, grad_at, dx_at] = [cuda::address_of(x)?, cuda::address_of(grad)?, cuda::address_of(&dx)?];
        let sizes = [grad.elem_count() / width, width];
        KERNELS.launch(device, &swiglu(x_at, Some(grad_at), dx_at, sizes, x.dtype())?)?;
        Ok(dx)
    }
}
