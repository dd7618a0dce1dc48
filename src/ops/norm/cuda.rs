//! Norms on a GPU.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Tensor};

use super::{Kind, NormOp};
use crate::ops::cuda::{self, Grid, Kernels, Parts, kernels, named, slices};

const KERNELS: Kernels = kernels!("norm");

/// Numbers and how they lie.
type Stored<'a> = (&'a CudaStorage, &'a Layout);

impl NormOp {
    /// Whether a mean is taken off, and what is added to the variance.
    fn form_on(&self) -> (i32, f32) {
        (i32::from(self.norm.kind == Kind::Layer), self.norm.eps as f32)
    }

    pub(super) fn forward_on(&self, x: Stored, gain: Stored, offset: Stored) -> Result<(CudaStorage, Shape)> {
        let (device, shape, dtype) = (x.0.device(), x.1.shape(), x.0.dtype());
        let y = cuda::fresh(device, shape.elem_count(), dtype)?;
        let at = |(storage, layout): Stored| cuda::address(storage, layout);
        let (x, y_at) = (at(x)?, cuda::first(&y)?);
        let aligned = cuda::aligned(self.width, dtype, &[x, y_at]);
        let (layer, eps) = self.form_on();
        KERNELS.launch(
            device,
            &named("norm_forward", dtype)?,
            Grid::rows(shape.elem_count() / self.width, self.width, dtype, aligned),
            &[
                &x,
                &at(gain)?,
                &at(offset)?,
                &y_at,
                &(self.width as i32),
                &layer,
                &eps,
                &i32::from(aligned),
                &Parts::new(&self.norm.parts, gain.1.dims()[0]),
            ],
        )?;
        Ok((y, shape.clone()))
    }

    /// The gradients that are wanted.
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
        // A table that all samples share has the sum of their gradients.
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
        let aligned = cuda::aligned(self.width, dtype, &[x_at, grad_at, dx_at]);
        let (layer, eps) = self.form_on();
        KERNELS.launch(
            device,
            &named("norm_back", dtype)?,
            Grid::rows(x.elem_count() / self.width, self.width, dtype, aligned),
            &[
                &x_at,
                &cuda::address_of(gain)?,
                &grad_at,
                &dx_at,
                &(self.width as i32),
                &layer,
                &eps,
                &i32::from(aligned),
                &Parts::new(&self.norm.parts, gain.dim(0)?),
            ],
        )?;
        Ok(dx)
    }

    /// The gradients of gain and offset, of every sample: (B, P, D) both.
    fn back_to_tables(&self, x: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
        let (device, dtype, width) = (x.device().as_cuda_device()?, x.dtype(), self.width);
        let (batch, parts, rows) = (x.dim(0)?, self.norm.parts.len(), x.elem_count() / width);
        let (layer, eps) = self.form_on();
        let moments = cuda::fresh_tensor(device, (rows, 2), DType::F32)?;
        let [x, grad, moments_at] = [
            cuda::address_of(x)?,
            cuda::address_of(grad)?,
            cuda::address_of(&moments)?,
        ];
        KERNELS.launch(
            device,
            &named("norm_moments", dtype)?,
            Grid::rows(rows, width, dtype, false),
            &[&x, &moments_at, &(width as i32), &layer, &eps],
        )?;
        const THREADS: usize = 128;
        let slices = slices(rows / (batch * parts));
        let [dgain, doffset] = [(); 2].map(|()| cuda::fresh_tensor(device, (batch, parts, slices, width), DType::F32));
        let (dgain, doffset) = (dgain?, doffset?);
        KERNELS.launch(
            device,
            &named("norm_tables", dtype)?,
            Grid {
                blocks: [width.div_ceil(THREADS), slices, batch * parts],
                threads: THREADS,
                shared: 0,
            },
            &[
                &x,
                &grad,
                &moments_at,
                &cuda::address_of(&dgain)?,
                &cuda::address_of(&doffset)?,
                &(width as i32),
                &Parts::new(&self.norm.parts, batch),
            ],
        )?;
        Ok((dgain.sum(2)?, doffset.sum(2)?))
    }
}
