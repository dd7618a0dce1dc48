//! Rotary position embedding: pairs of features turn by an angle that grows with the position.  arXiv:2104.09864
//!
//! (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin) with the angle p theta^(-2i / K_axis) for pair i of the features that an
//! axis has to itself. Pairs are neighbours (`get_1d_rotary_pos_embed` with `repeat_interleave_real` in diffusers).
//!
//! Shapes: B samples, H heads, S tokens, K features a head.

use candle_core::{D, DType, Device, Error, Result, Tensor};

use super::embed::spread;

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

/// Cosine and sine for every token, both (S, K / 2) in f32.
#[derive(Debug, Clone)]
pub struct Rotary {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl Rotary {
    /// For the tokens of a grid, the last axis fastest; the features of the axes stand one behind the other.
    pub fn grid(axes: &[Axis], theta: f32, device: &Device) -> Result<Self> {
        let lengths: Vec<usize> = axes.iter().map(|axis| axis.positions.len()).collect();
        let table = |(at, axis): (usize, &Axis)| {
            let angles = Tensor::from_vec(angles(axis, theta)?, (lengths[at], axis.width / 2), device)?;
            spread(&angles, at, &lengths)
        };
        let tables: Vec<Tensor> = axes.iter().enumerate().map(table).collect::<Result<_>>()?;
        let table = Tensor::cat(&tables, 1)?; // (S, K / 2)
        Ok(Self {
            cos: table.cos()?,
            sin: table.sin()?,
        })
    }

    /// The same, behind `count` tokens that do not turn.
    pub fn behind(&self, count: usize) -> Result<Self> {
        let still = (count, self.cos.dim(1)?);
        let (dtype, device) = (self.cos.dtype(), self.cos.device());
        Ok(Self {
            cos: Tensor::cat(&[&Tensor::ones(still, dtype, device)?, &self.cos], 0)?,
            sin: Tensor::cat(&[&Tensor::zeros(still, dtype, device)?, &self.sin], 0)?,
        })
    }

    /// (B, H, S, K) -> (B, H, S, K), computed in f32.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, heads, tokens, width) = x.dims4()?;
        let pairs = x.to_dtype(DType::F32)?.reshape((batch, heads, tokens, width / 2, 2))?;
        let even = pairs.narrow(D::Minus1, 0, 1)?.squeeze(D::Minus1)?; // (B, H, S, K / 2)
        let odd = pairs.narrow(D::Minus1, 1, 1)?.squeeze(D::Minus1)?; // (B, H, S, K / 2)
        let turned_even = (even.broadcast_mul(&self.cos)? - odd.broadcast_mul(&self.sin)?)?;
        let turned_odd = (odd.broadcast_mul(&self.cos)? + even.broadcast_mul(&self.sin)?)?;
        Tensor::stack(&[turned_even, turned_odd], 4)? // (B, H, S, K / 2, 2)
            .reshape((batch, heads, tokens, width))?
            .to_dtype(x.dtype())
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
