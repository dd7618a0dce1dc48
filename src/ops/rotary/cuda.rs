//! Rotary embedding on a GPU.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, D, Layout, Result, Shape};

use super::Op;
use super::launch::{Direction, Sizes, rotary};
use crate::ops::cuda::{self, Kernels, kernels};

const KERNELS: Kernels = kernels!("rotary");

impl Op {
    pub(super) fn forward_on(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (device, dtype, shape) = (x.device(), x.dtype(), layout.shape());
        let (batch, tokens, heads, width) = shape.dims4()?;
        let (cos, sin) = (&self.turn.cos, &self.turn.sin);
        let table_pairs = cos.dim(D::Minus1)?;
        let y = cuda::fresh(device, shape.elem_count(), dtype)?;
        let sizes = Sizes {
            batch,
            tokens,
            heads,
            width,
            table_rows: cos.elem_count() / table_pairs.max(1),
            table_pairs,
        };
        let direction = Direction {
            pairs: self.turn.pairs,
            first: self.turn.first,
            sign: self.sign,
        };
        let tables = [cuda::address_of(cos)?, cuda::address_of(sin)?];
        let (x_at, y_at) = (cuda::address(x, layout)?, cuda::first(&y)?);
        KERNELS.launch(device, &rotary(sizes, direction, x_at, tables, y_at, dtype)?)?;
        Ok((y, shape.clone()))
    }
}
