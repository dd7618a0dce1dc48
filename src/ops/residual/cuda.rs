//! Gated residuals on a GPU.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Tensor};

use super::{Gated, launch};
use crate::ops::cuda::{self, Kernels, kernels};
use crate::ops::kernel::rows::Rows;

const KERNELS: Kernels = kernels!("residual");

/// Storage with its layout.
type Stored<'a> = (&'a CudaStorage, &'a Layout);

impl Gated {
    pub(super) fn forward_on(&self, x: Stored, update: Stored, gate: Stored) -> Result<(CudaStorage, Shape)> {
        let (device, shape, dtype) = (x.0.device(), x.1.shape(), x.0.dtype());
        let y = cuda::fresh(device, shape.elem_count(), dtype)?;
        let at = |(storage, layout): Stored| cuda::address(storage, layout);
        let places = [at(x)?, at(update)?];
        let samples = gate.1.dims()[0];
        let launch = launch::forward(self.rows(shape, dtype)?, places, at(gate)?, samples, cuda::first(&y)?)?;
        KERNELS.launch(device, &launch)?;
        Ok((y, shape.clone()))
    }

    /// Returns the needed gradients.
    pub(super) fn back_on(
        &self,
        x: &Tensor,
        update: &Tensor,
        gate: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dx = x.track_op().then(|| grad.clone());
        let dupdate = update.track_op().then(|| self.back_to_update(gate, grad)).transpose()?;
        let dgate = gate
            .track_op()
            .then(|| self.back_to_gate(update, gate, grad))
            .transpose()?;
        Ok((dx, dupdate, dgate))
    }

    fn back_to_update(&self, gate: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (device, dtype) = (grad.device().as_cuda_device()?, grad.dtype());
        let dupdate = cuda::fresh_tensor(device, grad.dims(), dtype)?;
        let [grad_at, gate_at, to] = [
            cuda::address_of(grad)?,
            cuda::address_of(gate)?,
            cuda::address_of(&dupdate)?,
        ];
        let launch = launch::back(self.rows(grad.shape(), dtype)?, grad_at, gate_at, gate.dim(0)?, to)?;
        KERNELS.launch(device, &launch)?;
        Ok(dupdate)
    }

    fn back_to_gate(&self, update: &Tensor, gate: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let device = grad.device().as_cuda_device()?;
        let rows = self.rows(grad.shape(), grad.dtype())?;
        let sums = (rows.batch, self.parts.len(), rows.slices(), rows.width);
        let dgate = cuda::fresh_tensor(device, sums, DType::F32)?;
        let [update, grad, to] = [
            cuda::address_of(update)?,
            cuda::address_of(grad)?,
            cuda::address_of(&dgate)?,
        ];
        KERNELS.launch(device, &launch::gate(rows, update, grad, to)?)?;
        let of_samples = dgate.sum(2)?; // (B, P, D)
        match gate.dim(0)? == rows.batch {
            true => Ok(of_samples),
            false => of_samples.sum_keepdim(0), // shared by all samples
        }
    }

    /// Returns the rows of x (B, R, D).
    fn rows(&self, x: &Shape, dtype: DType) -> Result<Rows<'_>> {
        let (batch, _, width) = x.dims3()?;
        Ok(Rows {
            batch,
            parts: &self.parts,
            width,
            dtype,
        })
    }
}
