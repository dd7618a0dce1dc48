//! Transposed matrices `W^T` with contiguous rows.
//!
//! On the CPU the copy runs in tiles that fit the cache and on all threads, because all of a model's weights pass
//! through here at loading. Without gradients.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Rows and columns of a tile.
const TILE: usize = 32;

/// (M, N) -> (N, M), contiguous
pub fn transpose(x: &Tensor) -> Result<Tensor> {
    x.dims2()?;
    if x.device().is_cpu() && x.is_contiguous() {
        return x.apply_op1_no_bwd(&Transpose);
    }
    x.t()?.contiguous()
}

struct Transpose;

impl CustomOp1 for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, columns) = at.shape().dims2()?;
        let numbers = at.start_offset()..at.start_offset() + rows * columns;
        let out = match x {
            CpuStorage::F32(x) => CpuStorage::F32(transposed(&x[numbers], columns)),
            CpuStorage::BF16(x) => CpuStorage::BF16(transposed(&x[numbers], columns)),
            CpuStorage::F16(x) => CpuStorage::F16(transposed(&x[numbers], columns)),
            _ => candle_core::bail!("only matrices in f32, bf16 and f16 are transposed here"),
        };
        Ok((out, Shape::from((columns, rows))))
    }
}

/// Transposes `x`: (M, N) -> (N, M), for N = `columns`
fn transposed<T: Copy + Default + Send + Sync>(x: &[T], columns: usize) -> Vec<T> {
    let rows = x.len() / columns.max(1);
    let mut out = vec![T::default(); x.len()];
    // A task writes TILE rows of `out`, which are columns of `x`, processing them tile by tile.
    let tasks = out.par_chunks_mut(TILE * rows.max(1)).enumerate();
    tasks.for_each(|(task, out)| {
        let first = task * TILE;
        let last = columns.min(first + TILE);
        for (above, x) in x.chunks(TILE * columns).enumerate() {
            // Through a separate tile: rows whose length is a power of two would evict each other from the cache.
            let mut tile = [[T::default(); TILE]; TILE];
            for (row, x) in x.chunks(columns).enumerate() {
                for (tile, x) in tile.iter_mut().zip(&x[first..last]) {
                    tile[row] = *x;
                }
            }
            let height = x.len() / columns;
            for (out, tile) in out.chunks_mut(rows).zip(&tile) {
                out[above * TILE..][..height].copy_from_slice(&tile[..height]);
            }
        }
    });
    out
}
