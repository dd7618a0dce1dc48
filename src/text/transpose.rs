//! `W^T` with its rows one after another in memory.
//!
//! On the CPU it is written in tiles that fit the cache and on all threads, since all of a model's weights go through
//! here while it is loaded. Without gradients.

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

/// `x`: (M, N) -> (N, M), for N = `columns`
fn transposed<T: Copy + Default + Send + Sync>(x: &[T], columns: usize) -> Vec<T> {
    let rows = x.len() / columns.max(1);
    let mut out = vec![T::default(); x.len()];
    // A task writes TILE rows of `out`, which are columns of `x`, and goes down these tile by tile.
    let tasks = out.par_chunks_mut(TILE * rows.max(1)).enumerate();
    tasks.for_each(|(task, out)| {
        let first = task * TILE;
        let last = columns.min(first + TILE);
        for (above, x) in x.chunks(TILE * columns).enumerate() {
            // By way of a tile beside: rows of a power of two numbers would push each other out of the cache.
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
