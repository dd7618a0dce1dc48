//! Position embeddings of LTX-Video: rotary, by time in units of 20 seconds, and by row and column in units of 2048
//! pixels.
//!
//! ```text
//! angle of frequency i on an axis = pi/2 theta^(i / (W - 1)) (2 p - 1),  W = D // 6
//! ```
//!
//! with p the position on the axis, 0 at the start and 1 at the base size. The pairs of a token's D features are
//! rotated by (time, row, column) of frequency 0, then of 1, and so on; the first D mod 6 features are not rotated. So
//! heads differ in their rotation. Equals `LTXVideoRotaryPosEmbed` with its pipeline's `rope_interpolation_scale`, in
//! f32 as there: the largest angles are so large that another order of operations would give another model.

use std::f32::consts::PI;

use candle_core::{Device, Result, Tensor};

use crate::nn::embed::spread;
use crate::nn::rope::{PairLayout, Rotary};

/// Frames of a clip per latent frame, except the first.
pub const TEMPORAL_COMPRESSION: usize = 8;

/// Pixel rows and columns per latent.
pub const SPATIAL_COMPRESSION: usize = 32;

/// Units of positions: seconds, rows and columns.
const BASE: [f32; 3] = [20.0, 2048.0, 2048.0];

const THETA: f64 = 10_000.0;

/// Rotary tables for tokens of width `dim` on a `grid` of frames, rows and columns, in clips of these frame rates.
pub fn rotary(dim: usize, grid: [usize; 3], frame_rates: &[f64], device: &Device) -> Result<Rotary> {
    let frequencies = frequencies(dim / 6);
    let axis = |axis: usize, scale: f64| {
        let place = |i: usize| i as f32 * scale as f32 / BASE[axis] * 2.0 - 1.0;
        let angles = (0..grid[axis]).flat_map(|i| frequencies.iter().map(move |frequency| frequency * place(i)));
        let angles = Tensor::from_vec(angles.collect(), (grid[axis], frequencies.len()), device)?;
        spread(&angles, axis, &grid) // (N, D // 6)
    };
    let space = SPATIAL_COMPRESSION as f64;
    let (rows, columns) = (axis(1, space)?, axis(2, space)?);
    let sample = |rate: f64| {
        let seconds = axis(0, TEMPORAL_COMPRESSION as f64 / rate)?;
        let turning = Tensor::stack(&[&seconds, &rows, &columns], 2)?.flatten_from(1)?; // (N, D // 6 * 3)
        turning.pad_with_zeros(1, dim % 6 / 2, 0) // (N, D / 2)
    };
    let (first, others) = frame_rates.split_first().unwrap_or((&1.0, &[])); // none: no samples
    if others.iter().all(|rate| rate == first) {
        return Rotary::by(&sample(*first)?, PairLayout::Neighbours);
    }
    let samples: Vec<Tensor> = frame_rates.iter().map(|rate| sample(*rate)).collect::<Result<_>>()?;
    Rotary::by(&Tensor::stack(&samples, 0)?, PairLayout::Neighbours)
}

/// Returns pi/2 theta^x for `count` x from 0 to 1, evenly spaced as in `torch.linspace`: computed from the nearer end.
fn frequencies(count: usize) -> Vec<f32> {
    let last = count.saturating_sub(1);
    let step = 1.0 / last.max(1) as f32;
    let exponent = |i: usize| match i < count / 2 || last == 0 {
        true => step * i as f32,
        false => (-step).mul_add((last - i) as f32, 1.0),
    };
    (0..count)
        .map(|i| THETA.powf(f64::from(exponent(i))) as f32 * PI / 2.0)
        .collect()
}
