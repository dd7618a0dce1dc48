//! Gated residuals on a GPU.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Tensor};

use super::Gated;
use crate::ops::cuda::{self, Grid, Kernels, Parts, kernels, named, slices};

const KERNELS: Kernels = kernels!("residual");

/// Numbers and how they lie.
type Stored<'a> = (&'a CudaStorage, &'a Layout);

impl Gated {
    pub(super) fn forward_on(&self, x: Stored, update: Stored, gate: Stored) -> Result<(CudaStorage, Shape)> {
        let (device, shape, dtype) = (x.0.device(), x.1.shape(), x.0.dtype());
        let (batch, rows, width) = shape.dims3()?;
        let y = cuda::fresh(device, shape.elem_count(), dtype)?;
        let at = |(storage, layout): Stored| cuda::address(storage, layout);
        let [x, update, y_at] = [at(x)?, at(update)?, cuda::first(&y)?];
        let aligned = cuda::aligned(width, dtype, &[x, update, y_at]);
        KERNELS.launch(
            device,
            &named("residual_forward", dtype)?,
            Grid::rows(batch * rows, width, dtype, aligned),
            &[
                &x,
                &update,
                &at(gate)?,
                &y_at,
                &(width as i32),
                &i32::from(aligned),
                &Parts::new(&self.parts, gate.1.dims()[0]),
            ],
        )?;
        Ok((y, shape.clone()))
    }

    /// The gradients that are wanted.
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
        let (batch, rows, width) = grad.dims3()?;
        let dupdate = cuda::fresh_tensor(device, grad.dims(), dtype)?;
        let [grad, to] = [cuda::address_of(grad)?, cuda::address_of(&dupdate)?];
        let aligned = cuda::aligned(width, dtype, &[grad, to]);
        KERNELS.launch(
            device,
            &named("residual_back", dtype)?,
            Grid::rows(batch * rows, width, dtype, aligned),
            &[
                &grad,
                &cuda::address_of(gate)?,
                &to,
                &(width as i32),
                &i32::from(aligned),
                &Parts::new(&self.parts, gate.dim(0)?),
            ],
        )?;
        Ok(dupdate)
    }

    fn back_to_gate(&self, update: &Tensor, gate: &Tensor, grad: &Tensor) -> Result<Tensor> {
        const THREADS: usize = 128;
        let (device, dtype) = (grad.device().as_cuda_device()?, grad.dtype());
        let (batch, rows, width) = grad.dims3()?;
        let (parts, slices) = (self.parts.len(), slices(rows / self.parts.len()));
        let dgate = cuda::fresh_tensor(device, (batch, parts, slices, width), DType::F32)?;
        KERNELS.launch(
            device,
            &named("residual_gate", dtype)?,
            Grid {
                blocks: [width.div_ceil(THREADS), slices, batch * parts],
                threads: THREADS,
                shared: 0,
            },
            &[
                &cuda::address_of(update)?,
                &cuda::address_of(grad)?,
                &cuda::address_of(&dgate)?,
                &(width as i32),
                &Parts::new(&self.parts, batch),
            ],
        )?;
        let of_samples = dgate.sum(2)?; // (B, P, D)
        match gate.dim(0)? == batch {
            true => Ok(of_samples),
            false => of_samples.sum_keepdim(0), // shared by all samples
        }
    }
}
