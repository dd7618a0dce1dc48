//! Attention on a GPU: by cuDNN where it can, else by the kernels of tiled.cu.
//!
//! Both keep the log-sum-exp as a natural logarithm (B, H, S), so that either may go the way back of the other's way forward.

use candle_core::backend::BackendStorage;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Tensor};
use cudarc::driver::DeviceRepr;

#[cfg(feature = "cudnn")]
use super::cudnn;
use super::way::{self, Way};
use super::{Attention, Mask, Sizes};
use crate::ops::cuda::{self, Address, Argument, Grid, Kernels, kernels, named};

const KERNELS: Kernels = kernels!("tiled");

/// Queries, and keys, of a tile.
const SIDE: usize = 16;

/// Numbers and how they lie.
type Stored<'a> = (&'a CudaStorage, &'a Layout);

/// `Sizes` of tiled.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Passed {
    queries: i32,
    keys: i32,
    heads: i32,
    width: i32,
    scale: f32,
    of_samples: i64,
    of_heads: i64,
    of_queries: i64,
}

// SAFETY: the same fields in the same order as in tiled.cu.
unsafe impl DeviceRepr for Passed {}

/// Where everything lies that the way forward reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read {
    pub q: Address,
    pub k: Address,
    pub v: Address,
}

/// What the way back reads besides.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadBack {
    pub out: Address,
    pub log_sums: Address,
    pub grad: Address,
}

/// Where the gradients go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub dq: Address,
    pub dk: Address,
    pub dv: Address,
}

impl Attention {
    /// The output, and the log-sum-exp (B, H, S).
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
            way::note(Way::Cudnn, dtype, self.sizes.width);
            return Ok((out, log_sums));
        }
        way::note(Way::Tiled, dtype, self.sizes.width);
        let mask = self.mask_at()?;
        let arguments: [&dyn Argument; 7] = [&read.q, &read.k, &read.v, &mask, &to, &sums, &self.passed()];
        self.tiled(device, "attention_forward", dtype, [queries, 2], &arguments)?;
        Ok((out, log_sums))
    }

    /// The gradients of q, k and v, all of them: two come with the third.
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
            way::note(Way::Cudnn, dtype, self.sizes.width);
            return Ok(found);
        }
        way::note(Way::Tiled, dtype, self.sizes.width);
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
            batch,
            queries,
            keys,
            heads,
            ..
        } = self.sizes;
        let Read { q, k, v } = read;
        let ReadBack { out, log_sums, grad } = also;
        let Written { dq, dk, dv } = written;
        let sums = cuda::fresh_tensor(device, (batch, heads, queries), DType::F32)?;
        let (along, mask, passed) = (cuda::address_of(&sums)?, self.mask_at()?, self.passed());
        self.tiled(
            device,
            "attention_along",
            dtype,
            [queries, 0],
            &[&out, &grad, &along, &passed],
        )?;
        let arguments: [&dyn Argument; 9] = [&q, &k, &v, &mask, &grad, &log_sums, &along, &dq, &passed];
        self.tiled(device, "attention_back_queries", dtype, [queries, 4], &arguments)?;
        let arguments: [&dyn Argument; 10] = [&q, &k, &v, &mask, &grad, &log_sums, &along, &dk, &dv, &passed];
        self.tiled(device, "attention_back_keys", dtype, [keys, 4], &arguments)
    }

    /// A block for each tile of so many tokens of each head, with memory for so many tiles.
    fn tiled(
        &self,
        device: &CudaDevice,
        kernel: &str,
        dtype: DType,
        [tokens, tiles]: [usize; 2],
        arguments: &[&dyn Argument],
    ) -> Result<()> {
        let scores = tiles / 2; // tiles of scores beside those of tokens
        let numbers = tiles * SIDE * (self.sizes.width + 1) + scores * SIDE * SIDE;
        let grid = Grid {
            blocks: [tokens.div_ceil(SIDE), self.sizes.batch * self.sizes.heads, 1],
            threads: SIDE * SIDE,
            shared: numbers * size_of::<f32>(),
        };
        KERNELS.launch(device, &named(kernel, dtype)?, grid, arguments)
    }

    fn mask_at(&self) -> Result<Address> {
        let table = self.mask.as_ref().and_then(|mask| mask.table.as_ref());
        table.map_or(Ok(0), cuda::address_of)
    }

    fn passed(&self) -> Passed {
        let strides = self.mask.as_ref().map_or([0; 3], |mask: &Mask| mask.strides);
        let [of_samples, of_heads, of_queries] = strides.map(|stride| stride as i64);
        Passed {
            queries: self.sizes.queries as i32,
            keys: self.sizes.keys as i32,
            heads: self.sizes.heads as i32,
            width: self.sizes.width as i32,
            scale: self.sizes.scale(),
            of_samples,
            of_heads,
            of_queries,
        }
    }
}
