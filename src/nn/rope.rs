//! Rotary position embedding: pairs of features turn by an angle that grows with the position.  arXiv:2104.09864
//!
//! (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin) with the angle p theta^(-2i / K_axis) for pair i of the features that an
//! axis has to itself (`get_1d_rotary_pos_embed` in diffusers; its `repeat_interleave_real` makes neighbours a pair).
//!
//! Shapes: B samples, S tokens, H heads, K features a head.

use candle_core::{Device, Error, Result, Tensor};

use super::embed::spread;
use crate::ops::rotary::Turn;

pub use crate::ops::rotary::Pairs;

/// The usual base of the angles.
pub const THETA: f32 = 10_000.0;

/// One axis of the grid that the tokens stand on.
#[derive(Debug, Clone)]
pub struct Axis {
    /// Position of each place on the axis.
    pub positions: Vec<f32>,
    /// How many features turn with it; even.
    pub width: usize,
}

/// Cosine and sine for every token, and what they turn.
#[derive(Debug, Clone)]
pub struct Rotary(Turn);

impl Rotary {
    /// For the tokens of a grid, the last axis fastest; the features of the axes stand one behind the other.
    pub fn grid(axes: &[Axis], theta: f32, pairs: Pairs, device: &Device) -> Result<Self> {
        let lengths: Vec<usize> = axes.iter().map(|axis| axis.positions.len()).collect();
        let table = |(at, axis): (usize, &Axis)| {
            let angles = Tensor::from_vec(angles(axis, theta)?, (lengths[at], axis.width / 2), device)?;
            spread(&angles, at, &lengths)
        };
        let tables: Vec<Tensor> = axes.iter().enumerate().map(table).collect::<Result<_>>()?;
        Self::by(&Tensor::cat(&tables, 1)?, pairs)
    }

    /// By angles (S, K / 2); (B, ...) where samples turn differently; (..., H K / 2) where heads do, by neighbours.
    pub fn by(angles: &Tensor, pairs: Pairs) -> Result<Self> {
        Ok(Self(Turn {
            cos: angles.cos()?,
            sin: angles.sin()?,
            pairs,
            first: 0,
        }))
    }

    /// The same, behind `count` tokens that do not turn.
    pub fn behind(mut self, count: usize) -> Self {
        self.0.first += count;
        self
    }

    /// As wide as the angles, f32, without the tokens that do not turn.
    pub fn cos(&self) -> &Tensor {
        &self.0.cos
    }

    /// As `cos`.
    pub fn sin(&self) -> &Tensor {
        &self.0.sin
    }

    /// (B, S, H, K) -> (B, S, H, K), computed in f32.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}

/// The angles of an axis, place by place, in f32 as torch computes them.
fn angles(axis: &Axis, theta: f32) -> Result<Vec<f32>> {
    if !axis.width.is_multiple_of(2) {
        return Err(Error::Msg(format!("{} features do not fall into pairs", axis.width)));
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
