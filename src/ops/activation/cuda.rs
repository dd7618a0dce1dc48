//! Activations on a GPU.

use candle_core::backend::BackendStorage;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Tensor};

use super::Activation;
use crate::ops::cuda::{self, Address, Grid, Kernels, kernels, named};

const KERNELS: Kernels = kernels!("activation");

impl Activation {
    pub(super) fn forward_on(self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let shape = layout.shape();
        let y = cuda::fresh(x.device(), shape.elem_count(), x.dtype())?;
        let places = [cuda::address(x, layout)?, 0, cuda::first(&y)?];
        self.launch(x.device(), places, shape.elem_count(), x.dtype())?;
        Ok((y, shape.clone()))
    }

    /// The gradient of x.
    pub(super) fn back_on(self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let device = x.device().as_cuda_device()?;
        let (x, grad) = (x.contiguous()?, grad.contiguous()?);
        let dx = cuda::fresh_tensor(device, x.dims(), x.dtype())?;
        let places = [cuda::address_of(&x)?, cuda::address_of(&grad)?, cuda::address_of(&dx)?];
        self.launch(device, places, x.elem_count(), x.dtype())?;
        Ok(dx)
    }

    /// The way forward where the gradient has no address.
    fn launch(self, device: &CudaDevice, places: [Address; 3], count: usize, dtype: DType) -> Result<()> {
        let pack = 16 / dtype.size_in_bytes();
        let aligned = cuda::aligned(pack, dtype, &places);
        let grid = Grid::over(count.div_ceil(if aligned { pack } else { 1 }));
        let [x, grad, out] = places;
        KERNELS.launch(
            device,
            &named("activation", dtype)?,
            grid,
            &[&x, &grad, &out, &(count as i64), &(self as i32), &i32::from(aligned)],
        )
    }
}
