//! Learned rotary embedding: `MochiRoPE` of diffusers. The angle of a pair of features is the product of the token's position
//! (frame, row, column) with three learned frequencies, head by head.
//!
//! Frames count from 0. Rows and columns have their origin in the middle, and are scaled such that the frame's area is that of
//! BASE x BASE tokens.
//!
//! Shapes: N tokens, H heads of width K.

use candle_core::{DType, Device, Result, Tensor};

use crate::nn::Weights;
use crate::nn::embed::spread;
use crate::nn::rope::{PairLayout, Rotary};

/// Side of the square that frames are scaled to.
const BASE: f64 = 192.0;

/// Frequencies of frame, row and column.
#[derive(Debug, Clone)]
pub struct PosFrequencies(Tensor); // (3, H K / 2) f32

impl PosFrequencies {
    /// Reads `pos_frequencies`, of each head and pair of features.
    pub fn new(num_heads: usize, head_dim: usize, weights: &Weights) -> Result<Self> {
        let shape = (3, num_heads, head_dim / 2);
        let frequencies = weights.to_dtype(DType::F32).get(shape, "pos_frequencies")?;
        Ok(Self(frequencies.flatten_from(1)?))
    }

    /// Returns the rotation of a grid's tokens.
    pub fn rotary(&self, grid: [usize; 3]) -> Result<Rotary> {
        let angles = positions(grid, self.0.device())?.matmul(&self.0)?; // (N, H K / 2)
        Rotary::by(&angles, PairLayout::Neighbours)
    }
}

/// Returns frame, row and column of each token, (N, 3).
fn positions(grid: [usize; 3], device: &Device) -> Result<Tensor> {
    let [frames, rows, columns] = grid;
    let scale = (BASE * BASE / (rows * columns) as f64).sqrt();
    let axes = [
        (0..frames).map(|frame| frame as f32).collect(),
        centres(rows, scale),
        centres(columns, scale),
    ];
    let tables = axes.into_iter().enumerate().map(|(at, axis): (usize, Vec<f32>)| {
        let table = Tensor::from_vec(axis, (grid[at], 1), device)?;
        spread(&table, at, &grid)
    });
    Tensor::cat(&tables.collect::<Result<Vec<_>>>()?, 1)
}

/// Returns the middles of `count` intervals of this width around 0, between edges as `torch.linspace` spaces them.
fn centres(count: usize, width: f64) -> Vec<f32> {
    let end = (count as f64 * width / 2.0) as f32;
    let step = (end + end) / count as f32;
    let edge = |at: usize| match 2 * at < count + 1 {
        true => step * at as f32 - end,
        false => end - step * (count - at) as f32,
    };
    (0..count).map(|at| (edge(at) + edge(at + 1)) / 2.0).collect()
}
