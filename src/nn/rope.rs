//! Rotary position embedding: pairs of features are rotated by an angle proportional to the position.  arXiv:2104.09864
//!
//! (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin) with the angle p theta^(-2i / K_axis) for pair i of an axis's own
//! features (`get_1d_rotary_pos_embed` in diffusers; its `repeat_interleave_real` pairs neighbours).
//!
//! Shapes: B samples, S tokens, H heads, K features a head.

use candle_core::{Device, Error, Result, Tensor};

use super::embed::spread;
use crate::ops::rotary::Rotation;

pub use crate::ops::rotary::PairLayout;

/// Usual base of the angles.
pub const THETA: f32 = 10_000.0;

/// One axis of the token grid.
#[derive(Debug, Clone)]
pub struct Axis {
    /// Position of each index on the axis.
    pub positions: Vec<f32>,
    /// Number of features rotated by it; even.
    pub width: usize,
}

impl Axis {
    /// Axis of the positions 0, 1, 2, ...
    pub fn counted(count: usize, width: usize) -> Self {
        Self {
            positions: (0..count).map(|i| i as f32).collect(),
            width,
        }
    }
}

/// Cosine and sine for every token, and the pairs they rotate.
#[derive(Debug, Clone)]
pub struct Rotary(Rotation);

impl Rotary {
    /// Rotation for the tokens of a grid, the last axis fastest; the features of the axes are consecutive.
    pub fn grid(axes: &[Axis], theta: f32, pairs: PairLayout, device: &Device) -> Result<Self> {
        let lengths: Vec<usize> = axes.iter().map(|axis| axis.positions.len()).collect();
        let table = |(at, axis): (usize, &Axis)| {
            let angles = Tensor::from_vec(angles(axis, theta)?, (lengths[at], axis.width / 2), device)?;
            spread(&angles, at, &lengths)
        };
        let tables: Vec<Tensor> = axes.iter().enumerate().map(table).collect::<Result<_>>()?;
        Self::by(&Tensor::cat(&tables, 1)?, pairs)
    }

    /// Rotation by angles (S, K / 2); (B, ...) if samples differ; (..., H K / 2) if heads differ, with neighbouring
    /// pairs.
    pub fn by(angles: &Tensor, pairs: PairLayout) -> Result<Self> {
        Ok(Self(Rotation {
            cos: angles.cos()?,
            sin: angles.sin()?,
            pairs,
            first: 0,
        }))
    }

    /// Prepends `count` tokens that are not rotated.
    pub fn behind(mut self, count: usize) -> Self {
        self.0.first += count;
        self
    }

    /// Appends `count` tokens that are not rotated, in tables (S, K / 2).
    pub fn before(mut self, count: usize) -> Result<Self> {
        let pairs = self.0.cos.dim(1)?;
        let still = self.0.cos.zeros_like()?.narrow(0, 0, 1)?.broadcast_as((count, pairs))?;
        self.0.cos = Tensor::cat(&[self.0.cos, (&still + 1.0)?], 0)?;
        self.0.sin = Tensor::cat(&[self.0.sin, still], 0)?;
        Ok(self)
    }

    /// Returns the cosines, as wide as the angles, f32, without tokens that are not rotated.
    pub fn cos(&self) -> &Tensor {
        &self.0.cos
    }

    /// Returns the sines, shaped as `cos`.
    pub fn sin(&self) -> &Tensor {
        &self.0.sin
    }

    /// Rotates (B, S, H, K) -> (B, S, H, K), computed in f32.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}

/// Returns the angles of an axis, by position, in f32 as torch computes them.
fn angles(axis: &Axis, theta: f32) -> Result<Vec<f32>> {
    if !axis.width.is_multiple_of(2) {
        return Err(Error::Msg(format!("{} features cannot be paired", axis.width)));
    }
    let frequencies: Vec<f32> = (0..axis.width)
        .step_by(2)
        .map(|i| 1.0 / theta.powf(i as f32 / axis.width as f32))
        .collect();
    Ok(axis
        .positions
        .iter()
        .flat_map(|position| frequencies.iter().map(move |frequency| position * frequency))
        .collect())
}
