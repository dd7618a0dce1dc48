//! Sinusoidal embeddings of timesteps and positions.
//!
//! `sinusoid`: angle t P^(-i / (W/2 - shift)) for i < W/2 with P = 10000 (`Timesteps` in diffusers, arXiv:2006.11239).
//! `TimestepEmbedding`: linear, SiLU, linear on it. `TimeModulation`: SiLU, linear on that, giving the modulation of
//! all blocks (`AdaLayerNormSingle`, arXiv:2310.00426). `positions_3d`: sines and cosines of frame, column and row, in
//! that order (`get_3d_sincos_pos_embed`).
//!
//! Shapes: B samples, W features.

use candle_core::{DType, Device, Error, Result, Tensor};

use super::linear::{Linear, linear};
use super::weights::Weights;
use crate::ops::activation::silu;

const MAX_PERIOD: f64 = 10_000.0;

/// Sinusoidal embedding of a timestep.
#[derive(Debug, Clone, Copy)]
pub struct Sinusoid {
    /// Number of sines and cosines together.
    pub width: usize,
    /// True for cosines first.
    pub flip_sin_to_cos: bool,
    /// `downscale_freq_shift`: 0 or 1.
    pub freq_shift: f64,
}

impl Sinusoid {
    /// Embeds timesteps (B) of any type -> (B, W) in f32
    pub fn forward(&self, timesteps: &Tensor) -> Result<Tensor> {
        let half = self.width / 2;
        let log_period = MAX_PERIOD.ln() as f32;
        let span = half as f32 - self.freq_shift as f32;
        let frequencies: Vec<f32> = (0..half).map(|i| (-log_period * i as f32 / span).exp()).collect();
        let frequencies = Tensor::from_vec(frequencies, (1, half), timesteps.device())?;
        let angles = timesteps
            .to_dtype(DType::F32)?
            .reshape(((), 1))?
            .broadcast_mul(&frequencies)?; // (B, W / 2)
        let (sin, cos) = (angles.sin()?, angles.cos()?);
        let both = if self.flip_sin_to_cos { [cos, sin] } else { [sin, cos] };
        Tensor::cat(&both, 1)?.pad_with_zeros(1, 0, self.width % 2)
    }
}

/// Linear, SiLU, linear: named as in `TimestepEmbedding` of diffusers.
#[derive(Debug, Clone)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    dtype: DType,
}

impl TimestepEmbedding {
    /// Loads the two linear layers, `in_features` to `out_features` to `out_features`.
    ///
    /// # Errors
    /// Fails for weights that are missing or of another shape.
    pub fn new(in_features: usize, out_features: usize, weights: Weights) -> Result<Self> {
        Ok(Self {
            linear_1: linear(in_features, out_features, weights.pp("linear_1"))?,
            linear_2: linear(out_features, out_features, weights.pp("linear_2"))?,
            dtype: weights.dtype(),
        })
    }

    /// Forward pass (B, in) of any type -> (B, out) of the weights' type
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.linear_1.forward(&x.to_dtype(self.dtype)?)?;
        self.linear_2.forward(&silu(&hidden)?)
    }
}

/// Sinusoidal embedding followed by a `TimestepEmbedding`.
#[derive(Debug, Clone)]
pub struct TimeEmbedder {
    sinusoid: Sinusoid,
    embedding: TimestepEmbedding,
}

impl TimeEmbedder {
    /// Loads an embedder from `width` cosines and sines to `out_features`.
    pub fn new(width: usize, out_features: usize, weights: Weights) -> Result<Self> {
        Ok(Self {
            sinusoid: Sinusoid {
                width,
                flip_sin_to_cos: true,
                freq_shift: 0.0,
            },
            embedding: TimestepEmbedding::new(width, out_features, weights)?,
        })
    }

    /// Embeds N timesteps in any shape -> (N, out)
    pub fn forward(&self, timestep: &Tensor) -> Result<Tensor> {
        self.embedding.forward(&self.sinusoid.forward(timestep)?)
    }
}

/// Embedded timestep, and the modulation of all blocks.
#[derive(Debug, Clone)]
pub struct TimeModulation {
    embedder: TimeEmbedder,
    linear: Linear,
    dtype: DType,
}

impl TimeModulation {
    /// Loads it from `width` cosines and sines to a model of width `dim`; the families name the two layers differently.
    pub fn new(width: usize, dim: usize, embedder: Weights, projection: Weights) -> Result<Self> {
        Ok(Self {
            embedder: TimeEmbedder::new(width, dim, embedder)?,
            dtype: projection.dtype(),
            linear: linear(dim, 6 * dim, projection)?,
        })
    }

    /// Embeds timesteps (B) or (B, P) -> (B, P, D) and the modulation of all blocks, (B, P, 6, D); P is 1 if omitted.
    pub fn forward(&self, timestep: &Tensor) -> Result<(Tensor, Tensor)> {
        let time = self.embedder.forward(timestep)?.to_dtype(self.dtype)?; // (B P, D)
        let modulation = self.linear.forward(&silu(&time)?)?; // (B P, 6 D)
        let (batch, dim) = (timestep.dim(0)?, time.dim(1)?);
        Ok((
            time.reshape((batch, (), dim))?,
            modulation.reshape((batch, (), 6, dim))?,
        ))
    }
}

/// A grid of tokens and the distance between its positions.
#[derive(Debug, Clone, Copy)]
pub struct Grid3d {
    /// Frames of tokens.
    pub frames: usize,
    /// Rows of tokens.
    pub height: usize,
    /// Columns of tokens.
    pub width: usize,
    /// `spatial_interpolation_scale`: positions in space are divided by it.
    pub spatial_scale: f64,
    /// `temporal_interpolation_scale`: likewise in time.
    pub temporal_scale: f64,
}

/// Returns positions of a grid as (frames * height * width, `features`) in f32, columns fastest.
///
/// A quarter of the features encodes the frame, three eighths the column, three eighths the row.
pub fn positions_3d(grid: &Grid3d, features: usize, device: &Device) -> Result<Tensor> {
    if !features.is_multiple_of(16) {
        return Err(Error::Msg(format!(
            "{features} features do not split into sines and cosines of three axes"
        )));
    }
    let lengths = [grid.frames, grid.height, grid.width];
    let axis = |axis: usize, scale: f64, width: usize| {
        let position = |i: usize| f64::from(i as f32 / scale as f32);
        let table: Vec<f32> = (0..lengths[axis]).flat_map(|i| sines(position(i), width)).collect();
        spread(
            &Tensor::from_vec(table, (lengths[axis], width), device)?,
            axis,
            &lengths,
        )
    };
    let frames = axis(0, grid.temporal_scale, features / 4)?;
    let rows = axis(1, grid.spatial_scale, features / 8 * 3)?;
    let columns = axis(2, grid.spatial_scale, features / 8 * 3)?;
    Tensor::cat(&[frames, columns, rows], 1)
}

/// Expands a table with a row for each position on one axis of a grid, (length, W), to a row for each token, (N, W).
pub fn spread(table: &Tensor, axis: usize, lengths: &[usize]) -> Result<Tensor> {
    let width = table.dim(1)?;
    let mut own = vec![1; lengths.len()];
    own[axis] = lengths[axis];
    let tokens: usize = lengths.iter().product();
    table
        .reshape([&own[..], &[width]].concat())?
        .broadcast_as([lengths, &[width]].concat())?
        .reshape((tokens, width))
}

/// Returns all sines of a position, then all cosines, computed in f64.
fn sines(position: f64, width: usize) -> Vec<f32> {
    let half = width / 2;
    let angle = |i: usize| position / MAX_PERIOD.powf(i as f64 / half as f64);
    let sin = (0..half).map(|i| angle(i).sin() as f32);
    sin.chain((0..half).map(|i| angle(i).cos() as f32)).collect()
}
