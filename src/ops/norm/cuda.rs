//! Norms on a GPU.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Tensor};

use super::NormOp;
use crate::ops::cuda::{self, Kernels, kernels};

const KERNELS: Kernels = kernels!("norm");

/// Storage with its layout.
type Stored<'a> = (&'a CudaStorage, &'a Layout);

impl NormOp {
    pub(super) fn forward_on(&self, x: Stored, gain: Stored, offset: Stored) -> Result<(CudaStorage, Shape)> {
        let (device, shape, dtype) = (x.0.device(), x.1.shape(), x.0.dtype());
        let y = cuda::fresh(device, shape.elem_count(), dtype)?;
        let at = |(storage, layout): Stored| cuda::address(storage, layout);
        let launches = self.norm.launches(shape.dims()[0], self.width, dtype);
        let tables = [at(gain)?, at(offset)?];
        let launch = launches.forward(at(x)?, tables, gain.1.dims()[0], cuda::first(&y)?)?;
        KERNELS.launch(device, &launch)?;
        Ok((y, shape.clone()))
    }

    /// Returns the needed gradients.
    pub(super) fn back_on(
        &self,
        x: &Tensor,
        gain: &Tensor,
        offset: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dx = x.track_op().then(|| self.back_to_x(x, gain, grad)).transpose()?;
        if !gain.track_op() && !offset.track_op() {
            return Ok((dx, None, None));
        }
        let (dgain, doffset) = self.back_to_tables(x, grad)?;
        // The gradient of a table shared by all samples is the sum over them.
        let of = |sums: Tensor, table: &Tensor| match table.dim(0)? == sums.dim(0)? {
            true => Ok(sums),
            false => sums.sum_keepdim(0),
        };
        let dgain = gain.track_op().then(|| of(dgain, gain)).transpose()?;
        let doffset = offset.track_op().then(|| of(doffset, offset)).transpose()?;
        Ok((dx, dgain, doffset))
    }

    fn back_to_x(&self, x: &Tensor, gain: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (device, dtype) = (x.device().as_cuda_device()?, x.dtype());
        let dx = cuda::fresh_tensor(device, x.dims(), dtype)?;
        let [x_at, grad_at, dx_at] = [cuda::address_of(x)?, cuda::address_of(grad)?, cuda::address_of(&dx)?];
        let launches = self.norm.launches(x.dim(0)?, self.width, dtype);
        let launch = launches.back(x_at, cuda::address_of(gain)?, gain.dim(0)?, grad_at, dx_at)?;
        KERNELS.launch(device, &launch)?;
        Ok(dx)
    }

    /// Returns the gradients of gain and offset of every sample, (B, P, D) both.
    fn back_to_tables(&self, x: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
        let (device, batch, width) = (x.device().as_cuda_device()?, x.dim(0)?, self.width);
        let launches = self.norm.launches(batch, width, x.dtype());
        let moments = cuda::fresh_tensor(device, (launches.rows.count(), 2), DType::F32)?;
        let [x, grad, moments_at] = [
            cuda::address_of(x)?,
            cuda::address_of(grad)?,
            cuda::address_of(&moments)?,
        ];
        KERNELS.launch(device, &launches.moments(x, moments_at)?)?;
        let sums = (batch, self.norm.parts.len(), launches.rows.slices(), width);
        let dgain = cuda::fresh_tensor(device, sums, DType::F32)?;
        let doffset = cuda::fresh_tensor(device, sums, DType::F32)?;
        let to = [cuda::address_of(&dgain)?, cuda::address_of(&doffset)?];
        KERNELS.launch(device, &launches.tables(x, grad, moments_at, to)?)?;
        Ok((dgain.sum(2)?, doffset.sum(2)?))
    }
}
