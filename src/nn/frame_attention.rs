//! Attention of the pixels of a clip that is causal by frames: x + to_out(attention(to_q(y), to_k(y), to_v(y))), y the
//! group norm of x, with one head. A pixel attends to all pixels of its own frame and of those before
//! (`prepare_causal_attention_mask` and `Attention` in diffusers).
//!
//! No mask is built: the queries of a frame are multiplied with the keys up to that frame only, which is half of the work.
//! Scores of a few queries are computed at a time, since on some devices they are stored.
//!
//! Shapes: B samples, F frames, H rows, W columns, C channels, S = F H W pixels of a clip.

use candle_core::{Result, Tensor};

use super::coder::Layer;
use super::coder_memory::{PieceSize, Tally};
use super::conv3d::FeatureCache;
use super::group_norm::GroupNorm;
use super::linear::{Linear, linear};
use super::weights::Weights;
use crate::ops::attention::attention;

/// Scores that are computed at a time, unless one query has more.
const SCORES: usize = 1 << 26;

/// Attention that is causal by frames, of clips that come whole.
pub struct FrameAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear, // to_out.0
    alone: bool,
}

impl FrameAttention {
    /// Loads the layer.
    pub fn load(channels: usize, groups: usize, eps: f64, weights: Weights) -> Result<Self> {
        let project = |name: &str| linear(channels, channels, weights.pp(name));
        Ok(Self {
            group_norm: GroupNorm::load(channels, groups, eps, weights.pp("group_norm"))?,
            to_q: project("to_q")?,
            to_k: project("to_k")?,
            to_v: project("to_v")?,
            to_out: project("to_out.0")?,
            alone: false,
        })
    }

    /// Restricts the attention, and the norm, of a pixel to its own frame: frames are a batch of pictures.
    pub fn of_frames_alone(self) -> Self {
        Self { alone: true, ..self }
    }
}

impl<S> Layer<S> for FrameAttention {
    /// Forward pass (B, F, H, W, C) -> (B, F, H, W, C)
    fn forward(&self, x: Tensor, _memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        let shape = x.dims5()?;
        let (batch, frames, height, width, channels) = match (self.alone, shape) {
            (false, shape) => shape,
            (true, (batch, frames, height, width, channels)) => (batch * frames, 1, height, width, channels),
        };
        let y = self
            .group_norm
            .forward(&x.reshape((batch, frames, height, width, channels))?)?;
        let y = y.reshape((batch, frames * height * width, channels))?; // (B, S, C)
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|layer| layer.forward(&y)?.unsqueeze(2));
        drop(y);
        let seen = causal_by_frames([&q?, &k?, &v?], height * width, SCORES)?; // (B, S, 1, C)
        x + self.to_out.forward(&seen.squeeze(2)?)?.reshape(shape)?
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        // Queries, keys, values, the result; keys and values in another order.
        (0..6).for_each(|_| {
            tally.hold(x);
        });
        (0..6).for_each(|_| tally.free(x));
        x
    }
}

/// Attention of queries, keys and values (B, S, N, K) of N heads, where each of the frames of `pixels` tokens sees itself and
/// those before, with about so many scores at a time -> (B, S, N, K)
pub fn causal_by_frames([q, k, v]: [&Tensor; 3], pixels: usize, scores: usize) -> Result<Tensor> {
    let (batch, tokens, heads, _) = q.dims4()?;
    let pixels = pixels.max(1);
    let mut samples = Vec::new();
    for sample in 0..batch {
        let [q, k, v] = [q, k, v].map(|x| x.narrow(0, sample, 1));
        let (q, k, v) = (q?, k?, v?);
        let mut parts = Vec::new();
        for start in (0..tokens).step_by(pixels) {
            let end = tokens.min(start + pixels);
            let (k, v) = (k.narrow(1, 0, end)?, v.narrow(1, 0, end)?);
            let together = (scores / (heads * end).max(1)).clamp(1, pixels);
            for first in (start..end).step_by(together) {
                let q = q.narrow(1, first, together.min(end - first))?;
                parts.push(attention(&q, &k, &v, None)?);
            }
        }
        samples.push(Tensor::cat(&parts, 1)?);
    }
    Tensor::cat(&samples, 0)
}
