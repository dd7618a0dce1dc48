//! Linear, GELU, linear: feed-forward layers, and projections of a text encoder's output (`FeedForward` and
//! `PixArtAlphaTextProjection` in diffusers).

use candle_core::{Result, Tensor};

use super::flops::Flops;
use super::linear::{Linear, linear};
use super::weights::Weights;
use crate::ops::activation::{gelu_erf, gelu_tanh};

/// Names of the two linear layers in a feed-forward layer.
pub const NET: [&str; 2] = ["net.0.proj", "net.2"];

/// Names of the two linear layers in a projection of a text encoder's output.
pub const PROJECTION: [&str; 2] = ["linear_1", "linear_2"];

/// Variants of GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// Exact.
    Erf,
    /// Tanh approximation.
    Tanh,
}

/// Feed-forward layer of a transformer block: linear, activation, linear.
#[derive(Debug, Clone)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
    gelu: Gelu,
}

impl FeedForward {
    /// Loads a layer with `widths` of input, inside and output, and `names` of the two linear layers.
    pub fn new(widths: [usize; 3], names: [&str; 2], gelu: Gelu, weights: Weights) -> Result<Self> {
        let [width, inner, out] = widths;
        Ok(Self {
            proj: linear(width, inner, weights.pp(names[0]))?,
            out: linear(inner, out, weights.pp(names[1]))?,
            gelu,
        })
    }

    /// Returns the floating-point operations for `tokens` tokens.
    pub fn flops(&self, tokens: usize) -> Result<Flops> {
        Ok(Flops {
            linear: self.proj.flops(tokens)? + self.out.flops(tokens)?,
            attention: 0.0,
        })
    }

    /// Forward pass (..., in) -> (..., out)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.proj.forward(x)?;
        let inner = match self.gelu {
            Gelu::Erf => gelu_erf(&inner)?,
            Gelu::Tanh => gelu_tanh(&inner)?,
        };
        self.out.forward(&inner)
    }
}
