//! Causal attention over time, for each pixel by itself: x + to_out(attention(to_q(y) / |to_q(y)|, to_k(y) / |to_k(y)|,
//! to_v(y))), y the group norm of x by frames. A pixel attends to itself in its own frame and in those before (`Attention`
//! with `qk_norm="l2"` and `MochiVaeAttnProcessor2_0` in diffusers).
//!
//! Some rows of all frames pass at a time, and their result is written over them: so a clip takes little more than itself.
//!
//! Shapes: B samples, F frames, H rows, W columns, C channels, P pixels of a frame that pass together, N heads, K features of
//! a head.

use candle_core::{D, DType, Device, Result, Tensor};

use super::coder::Layer;
use super::coder_memory::{PieceSize, Tally};
use super::conv3d::FeatureCache;
use super::group_norm::{GroupNorm, scaled};
use super::linear::{Linear, linear, linear_no_bias};
use super::weights::Weights;
use crate::ops::attention::attention;

/// Numbers of x that pass at a time, unless one row of all frames has more.
const TOGETHER: usize = 1 << 24;

/// Lower limit of the norm of a query or a key.
const EPS: f64 = 1e-5;

/// Causal attention over time, of clips that come whole.
pub struct TemporalAttention {
    norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear, // to_out.0
    heads: usize,
    together: usize,
}

impl TemporalAttention {
    /// Loads the layer, behind a norm by frames.
    pub fn load(channels: usize, heads: usize, norm: GroupNorm, weights: Weights) -> Result<Self> {
        let project = |name: &str| linear_no_bias(channels, channels, weights.pp(name));
        Ok(Self {
            norm,
            to_q: project("to_q")?,
            to_k: project("to_k")?,
            to_v: project("to_v")?,
            to_out: linear(channels, channels, weights.pp("to_out.0"))?,
            heads,
            together: TOGETHER,
        })
    }

    /// Limits the numbers of x that pass at a time; the result is the same.
    pub fn with_most_together(mut self, numbers: usize) -> Self {
        self.together = numbers;
        self
    }

    /// Returns the rows that pass at a time, of frames of this size.
    fn rows(&self, [frames, height, width]: [usize; 3], channels: usize) -> usize {
        (self.together / (frames * width * channels).max(1)).clamp(1, height.max(1))
    }

    /// Attends over the frames of y (P, F, C) -> (P, F, C)
    fn attend(&self, y: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (pixels, frames, channels) = y.dims3()?;
        let heads = |layer: &Linear| {
            let shape = (pixels, frames, self.heads, channels / self.heads);
            layer.forward(y)?.reshape(shape)
        };
        let (q, k, v) = (
            unit(&heads(&self.to_q)?)?,
            unit(&heads(&self.to_k)?)?,
            heads(&self.to_v)?,
        ); // (P, F, N, K)
        let seen = attention(&q, &k, &v, Some(mask))?;
        self.to_out.forward(&seen.reshape((pixels, frames, channels))?)
    }
}

impl<S> Layer<S> for TemporalAttention {
    /// Forward pass (B, F, H, W, C) -> (B, F, H, W, C)
    fn forward(&self, x: Tensor, _memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (batch, frames, height, width, channels) = x.dims5()?;
        let [scale, shift] = &self.norm.tables(&x)?; // (B, F, 1, 1, C)
        let mask = causal(frames, x.device())?;
        let together = self.rows([frames, height, width], channels);
        for first in (0..height).step_by(together) {
            let count = together.min(height - first);
            let rows = x.narrow(2, first, count)?; // (B, F, n, W, C)
            let y = scaled(&rows, [scale, shift])?.permute((0, 2, 3, 1, 4))?;
            let y = y.reshape((batch * count * width, frames, channels))?; // (P, F, C)
            let seen = self
                .attend(&y, &mask)?
                .reshape((batch, count, width, frames, channels))?;
            let sum = (rows + seen.permute((0, 3, 1, 2, 4))?)?;
            x.slice_set(&sum.contiguous()?, 2, first)?;
        }
        Ok(x)
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let [frames, height, width] = x.size;
        let rows = PieceSize {
            size: [frames, self.rows(x.size, x.channels).min(height), width],
            ..x
        };
        // The norm's result, queries, keys and values; what becomes of them while it is made.
        (0..6).for_each(|_| {
            tally.hold(rows);
        });
        (0..6).for_each(|_| tally.free(rows));
        x
    }
}

/// Returns x / max(|x|, eps) over the features of a head (..., K), in f32.
fn unit(x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let norm = wide.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(EPS)?;
    wide.broadcast_div(&norm)?.to_dtype(x.dtype())
}

/// Returns what is added to scores so that a frame sees itself and those before, (1, 1, F, F)
fn causal(frames: usize, device: &Device) -> Result<Tensor> {
    let hidden = |i: usize| i % frames > i / frames;
    let scores = (0..frames * frames).map(|i| if hidden(i) { f32::NEG_INFINITY } else { 0.0 });
    Tensor::from_iter(scores, device)?.reshape((1, 1, frames, frames))
}
