//! Rotary embedding on a GPU.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, D, Layout, Result, Shape};
use cudarc::driver::DeviceRepr;

use super::{Op, Pairs};
use crate::ops::cuda::{self, Grid, Kernels, kernels, named};

const KERNELS: Kernels = kernels!("rotary");

/// `Turn` of rotary.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Turn {
    tokens: i32,
    first: i32,
    size: i32,
    pairs: i32,
    halves: i32,
    rows: i32,
    sign: f32,
}

// SAFETY: the same fields in the same order as in rotary.cu.
unsafe impl DeviceRepr for Turn {}

impl Op {
    pub(super) fn forward_on(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (device, dtype, shape) = (x.device(), x.dtype(), layout.shape());
        let (_, tokens, heads, width) = shape.dims4()?;
        let (cos, sin) = (&self.turn.cos, &self.turn.sin);
        let pairs = cos.dim(D::Minus1)?;
        let y = cuda::fresh(device, shape.elem_count(), dtype)?;
        let turn = Turn {
            tokens: tokens as i32,
            first: self.turn.first as i32,
            size: (heads * width) as i32,
            pairs: pairs as i32,
            halves: i32::from(self.turn.pairs == Pairs::Halves),
            rows: (cos.elem_count() / pairs.max(1)).max(1) as i32, // tables of no rows turn nothing
            sign: self.sign,
        };
        let count = shape.elem_count() / 2;
        let tables = (cuda::address_of(cos)?, cuda::address_of(sin)?);
        KERNELS.launch(
            device,
            &named("rotary", dtype)?,
            Grid::over(count),
            &[
                &cuda::address(x, layout)?,
                &tables.0,
                &tables.1,
                &cuda::first(&y)?,
                &(count as i64),
                &turn,
            ],
        )?;
        Ok((y, shape.clone()))
    }
}
