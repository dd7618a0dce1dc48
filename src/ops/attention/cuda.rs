//! Attention on a GPU: by cuDNN where it can, else by the kernels of tiled.cu.
//!
//! Both save the log-sum-exp as a natural logarithm (B, H, S), so either can run the backward pass of the other's
//! forward pass.

use candle_core::backend::BackendStorage;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Tensor};

use super::launch::{Masked, Read, ReadBack, Tiled, Written};
use super::way::{self, Backend};
use super::{Attention, Sizes};
#[cfg(feature = "cudnn")]
use super::{Mask, cudnn};
use crate::ops::cuda::{self, Kernels, kernels};
#[cfg(feature = "cudnn")]
use crate::ops::kernel::Address;

const KERNELS: Kernels = kernels!("tiled");

/// Storage with its layout.
type Stored<'a> = (&'a CudaStorage, &'a Layout);

impl Attention {
    /// Returns the output, and the log-sum-exp (B, H, S).
    pub(super) fn forward_on(&self, q: Stored, k: Stored, v: Stored) -> Result<(CudaStorage, Tensor)> {
        let (device, dtype) = (q.0.device(), q.0.dtype());
        let Sizes {
            batch, queries, heads, ..
        } = self.sizes;
        let out = cuda::fresh(device, q.1.shape().elem_count(), dtype)?;
        let log_sums = cuda::fresh_tensor(device, (batch, heads, queries), DType::F32)?;
        let at = |(storage, layout): Stored| cuda::address(storage, layout);
        let read = Read {
            q: at(q)?,
            k: at(k)?,
            v: at(v)?,
        };
        let (to, sums) = (cuda::first(&out)?, cuda::address_of(&log_sums)?);
        #[cfg(feature = "cudnn")]
        if cudnn::forward(device, &self.sizes, self.mask.as_ref(), dtype, read, [to, sums])? {
            way::note(Backend::Cudnn, dtype, self.sizes.width);
            if let Some(mask) = &self.mask {
                self.blind(device, dtype, mask, [to, sums])?;
            }
            return Ok((out, log_sums));
        }
        way::note(Backend::Tiled, dtype, self.sizes.width);
        KERNELS.launch(device, &self.by_tiles(dtype)?.forward(read, [to, sums])?)?;
        Ok((out, log_sums))
    }

    /// Returns the gradients of q, k and v, always all three: two come with the third.
    pub(super) fn back_on(
        &self,
        [q, k, v]: [&Tensor; 3],
        out: &Tensor,
        log_sums: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (device, dtype) = (q.device().as_cuda_device()?, q.dtype());
        let like = |tensor: &Tensor| cuda::fresh_tensor(device, tensor.dims(), dtype);
        let (dq, dk, dv) = (like(q)?, like(k)?, like(v)?);
        let read = Read {
            q: cuda::address_of(q)?,
            k: cuda::address_of(k)?,
            v: cuda::address_of(v)?,
        };
        let also = ReadBack {
            out: cuda::address_of(out)?,
            log_sums: cuda::address_of(log_sums)?,
            grad: cuda::address_of(grad)?,
        };
        let written = Written {
            dq: cuda::address_of(&dq)?,
            dk: cuda::address_of(&dk)?,
            dv: cuda::address_of(&dv)?,
        };
        let found = (
            q.track_op().then(|| dq.clone()),
            k.track_op().then(|| dk.clone()),
            v.track_op().then(|| dv.clone()),
        );
        #[cfg(feature = "cudnn")]
        if cudnn::back(device, &self.sizes, self.mask.as_ref(), dtype, (read, also, written))? {
            way::note(Backend::Cudnn, dtype, self.sizes.width);
            return Ok(found);
        }
        way::note(Backend::Tiled, dtype, self.sizes.width);
        self.back_tiled(device, dtype, read, also, written)?;
        Ok(found)
    }

    fn back_tiled(
        &self,
        device: &CudaDevice,
        dtype: DType,
        read: Read,
        also: ReadBack,
        written: Written,
    ) -> Result<()> {
        let Sizes {
            batch, queries, heads, ..
        } = self.sizes;
        let sums = cuda::fresh_tensor(device, (batch, heads, queries), DType::F32)?;
        let (tiled, sums_at) = (self.by_tiles(dtype)?, cuda::address_of(&sums)?);
        KERNELS.launch(device, &tiled.along(also, sums_at)?)?;
        KERNELS.launch(device, &tiled.back_queries(read, also, sums_at, written.dq)?)?;
        KERNELS.launch(device, &tiled.back_keys(read, also, sums_at, [written.dk, written.dv])?)
    }

    /// Writes zeros for fully masked queries, where cuDNN returns the mean of all values. Their log-sum-exp becomes
    /// infinite, as in tiled.cu, so their weights and gradients are 0 in either backward pass.
    #[cfg(feature = "cudnn")]
    fn blind(&self, device: &CudaDevice, dtype: DType, mask: &Mask, written: [Address; 2]) -> Result<()> {
        match cudnn::seeing(&self.sizes, mask)? {
            Some(seeing) => KERNELS.launch(
                device,
                &self.by_tiles(dtype)?.blind(cuda::address_of(&seeing)?, written)?,
            ),
            None => Ok(()),
        }
    }

    fn by_tiles(&self, dtype: DType) -> Result<Tiled> {
        let table = self.mask.as_ref().and_then(|mask| mask.table.as_ref());
        let mask = Masked {
            at: table.map_or(Ok(0), cuda::address_of)?,
            strides: self.mask.as_ref().map_or([0; 3], |mask| mask.strides),
        };
        Ok(Tiled {
            sizes: self.sizes,
            mask,
            dtype,
        })
    }
}
