//! Linear, GELU, linear: feed-forward layers, and projections of a text encoder's output (`FeedForward` and
//! `PixArtAlphaTextProjection` in diffusers). Or a gated product between the two (SwiGLU, arXiv:2002.05202): the first makes a
//! and g, and the second takes a silu(g).
//!
//! The product between the two, four times as wide as the tokens, exists for a block of rows at a time on the CPU, and is not
//! kept for the backward pass, unless everything is ([`by_rows`]).

use candle_core::{Result, Tensor};

use super::flops::Flops;
use super::linear::{Linear, OpenLinear, linear, linear_no_bias};
use super::recall::{self, LayerKind};
use super::weights::Weights;
use crate::ops::activation::{gelu_erf, gelu_tanh};
use crate::ops::swiglu::swiglu;
use crate::ops::tape::{Output, RowWise, by_rows};

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

/// Layer between the two linear ones.
#[derive(Debug, Clone, Copy)]
enum Inner {
    Gelu(Gelu),
    SwiGlu,
}

/// Feed-forward layer of a transformer block: linear, activation, linear.
#[derive(Debug, Clone)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
    inner: Inner,
}

impl FeedForward {
    /// Loads a layer with `widths` of input, inside and output, and `names` of the two linear layers.
    pub fn new(widths: [usize; 3], names: [&str; 2], gelu: Gelu, weights: Weights) -> Result<Self> {
        let [width, inner, out] = widths;
        Ok(Self {
            proj: linear(width, inner, weights.pp(names[0]))?,
            out: linear(inner, out, weights.pp(names[1]))?,
            inner: Inner::Gelu(gelu),
        })
    }

    /// Same with a gated product, and without biases; the first layer has twice `inner` outputs.
    pub fn swiglu([width, inner, out]: [usize; 3], names: [&str; 2], weights: Weights) -> Result<Self> {
        Ok(Self {
            proj: linear_no_bias(width, 2 * inner, weights.pp(names[0]))?,
            out: linear_no_bias(inner, out, weights.pp(names[1]))?,
            inner: Inner::SwiGlu,
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
        self.forward_for(x, Output::Read)
    }

    /// Same as [`FeedForward::forward`], as the last layer of a block, whose output goes through `gate` to the residual alone:
    /// its numbers are needed in the backward pass only if the gate is trained.
    pub fn forward_last(&self, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
        let output = match gate.track_op() {
            true => Output::Read,
            false => Output::of_block(),
        };
        self.forward_for(x, output)
    }

    fn forward_for(&self, x: &Tensor, output: Output) -> Result<Tensor> {
        recall::output(LayerKind::FeedForward, || self.compute(x, output))
    }

    fn compute(&self, x: &Tensor, output: Output) -> Result<Tensor> {
        let layers = Layers {
            proj: self.proj.open()?,
            out: self.out.open()?,
            inner: self.inner,
        };
        match layers.proj.is_row_wise() && layers.out.is_row_wise() {
            true => by_rows(x, &layers, output),
            false => layers.run(x, 0, Output::Read),
        }
    }
}

/// The layers with their matrices at hand.
#[derive(Debug, Clone)]
struct Layers {
    proj: OpenLinear,
    out: OpenLinear,
    inner: Inner,
}

impl RowWise for Layers {
    fn width(&self) -> Result<usize> {
        self.out.out_features()
    }

    fn variables(&self) -> Vec<Tensor> {
        self.proj.variables().chain(self.out.variables()).cloned().collect()
    }

    fn run(&self, x: &Tensor, first: usize, output: Output) -> Result<Tensor> {
        let inner = self.proj.forward(x, first, Output::Read)?;
        let inner = match self.inner {
            Inner::Gelu(Gelu::Erf) => gelu_erf(&inner)?,
            Inner::Gelu(Gelu::Tanh) => gelu_tanh(&inner)?,
            Inner::SwiGlu => swiglu(&inner)?,
        };
        self.out.forward(&inner, first, output)
    }
}
