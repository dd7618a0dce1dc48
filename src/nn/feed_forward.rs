//! Linear, GELU, linear: feed-forward layers, and the same upon a text encoder's output (`FeedForward` and
//! `PixArtAlphaTextProjection` in diffusers).

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::linear::{Linear, linear};
use super::weights::Weights;
use crate::ops::activation::{gelu_erf, gelu_tanh};

/// What the two linear layers are called in a feed-forward layer.
pub const NET: [&str; 2] = ["net.0.proj", "net.2"];

/// What they are called upon a text encoder's output.
pub const PROJECTION: [&str; 2] = ["linear_1", "linear_2"];

/// `activation_fn` of a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// GELU by its tanh formula.
    #[serde(rename = "gelu-approximate")]
    GeluTanh,
}

/// Which GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// As it is defined.
    Erf,
    /// By the tanh formula.
    Tanh,
}

#[derive(Debug, Clone)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
    gelu: Gelu,
}

impl FeedForward {
    /// `widths`: of what comes in, inside, of what goes out. `names`: of the two linear layers.
    pub fn new(widths: [usize; 3], names: [&str; 2], gelu: Gelu, weights: Weights) -> Result<Self> {
        let [width, inner, out] = widths;
        Ok(Self {
            proj: linear(width, inner, weights.pp(names[0]))?,
            out: linear(inner, out, weights.pp(names[1]))?,
            gelu,
        })
    }

    /// (..., in) -> (..., out)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.proj.forward(x)?;
        let inner = match self.gelu {
            Gelu::Erf => gelu_erf(&inner)?,
            Gelu::Tanh => gelu_tanh(&inner)?,
        };
        self.out.forward(&inner)
    }
}
