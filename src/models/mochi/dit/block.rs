//! Blocks of clip and text, each in a stream of its own width, with joint attention: `MochiTransformerBlock`.
//!
//! ```text
//! x += norm(attention(norm(x) (1 + s))) tanh(g)      x += norm(ff(norm(x) (1 + s'))) tanh(g')
//! ```
//!
//! with RMS norms without parameters, and s, g, s' and g' from the timestep. The last block only reads the text.
//!
//! Shapes: B samples, N tokens of the clip, L of the text, S = N + L with the clip first, D the clip's width, P the text's, W
//! that of a stream.

use candle_core::{DType, Result, Tensor};

use super::EPS;
use super::config::{Config, feed_forward_dim};
use crate::models::denoiser::State;
use crate::models::transformer;
use crate::nn::ada_norm::TimeProjection;
use crate::nn::feed_forward::{FeedForward, NET};
use crate::nn::flops::Flops;
use crate::nn::joint_attention::{JointAttention, JointAttentionSpec, SequenceContext, padding_bias};
use crate::nn::norm::NormKind;
use crate::nn::{Linear, Norm, Weights, linear};
use crate::ops::activation::silu;
use crate::ops::add::add;

/// Epsilon of the norms of queries and keys.
const QK_EPS: f64 = 1e-5;

/// A block.
#[derive(Debug, Clone)]
pub struct Block {
    attn1: JointAttention,
    video: Stream, // norm1, ff
    text: Text,    // norm1_context, ff_context
}

/// Norms and feed-forward layer of a stream.
#[derive(Debug, Clone)]
struct Stream {
    modulation: TimeProjection<4>, // scale and gate of attention, scale and gate of the feed-forward layer
    norm: Norm,                    // without parameters
    ff: FeedForward,
}

/// The text's stream.
#[derive(Debug, Clone)]
enum Text {
    Changed(Stream),
    Read(Read),
}

/// Norm of a stream that is only read.
#[derive(Debug, Clone)]
struct Read {
    linear_1: Linear,
    norm: Norm,
}

impl Stream {
    fn new(width: usize, time_width: usize, [norm1, ff]: [&str; 2], weights: &Weights) -> Result<Self> {
        Ok(Self {
            modulation: TimeProjection::new(time_width, width, weights.pp(norm1))?,
            norm: Norm::plain(NormKind::Rms, width, EPS, weights)?,
            ff: FeedForward::swiglu([width, feed_forward_dim(width), width], NET, weights.pp(ff))?,
        })
    }

    /// Returns the normed stream (B, ., W), times 1 + scale (B, 1, W).
    fn normed(&self, x: &Tensor, scale: &Tensor) -> Result<Tensor> {
        self.norm.scaled(x, &one_more(scale)?, &[x.dim(1)?])
    }

    /// Adds an update (B, ., W), normed and times the tanh of a gate (B, 1, W).
    fn gated(&self, x: &Tensor, update: &Tensor, gate: &Tensor) -> Result<Tensor> {
        add(x, &self.norm.scaled(update, &gate.tanh()?, &[x.dim(1)?])?)
    }

    /// Applies attention's update and the feed-forward layer.
    fn forward(&self, x: &Tensor, update: &Tensor, [gate, scale_mlp, gate_mlp]: [&Tensor; 3]) -> Result<Tensor> {
        let x = self.gated(x, update, gate)?;
        let update = self.ff.forward(&self.normed(&x, scale_mlp)?)?;
        self.gated(&x, &update, gate_mlp)
    }
}

impl Read {
    fn new(width: usize, time_width: usize, weights: Weights) -> Result<Self> {
        Ok(Self {
            norm: Norm::plain(NormKind::Rms, width, EPS, &weights)?,
            linear_1: linear(time_width, width, weights.pp("linear_1"))?,
        })
    }

    fn normed(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let scale = self.linear_1.forward(&silu(time)?)?; // (B, 1, P)
        self.norm.scaled(x, &one_more(&scale)?, &[x.dim(1)?])
    }
}

impl Block {
    /// Loads a block; the last one only reads the text.
    pub fn new(config: &Config, is_last: bool, weights: Weights) -> Result<Self> {
        let (dim, text) = (config.inner_dim(), config.pooled_projection_dim);
        let attention = JointAttentionSpec {
            text_width: text,
            bias: false,
            updates_text: !is_last,
            ..JointAttentionSpec::new(dim, config.num_attention_heads, QK_EPS)
        };
        Ok(Self {
            attn1: JointAttention::new(attention, weights.pp("attn1"))?,
            video: Stream::new(dim, dim, ["norm1", "ff"], &weights)?,
            text: match is_last {
                true => Text::Read(Read::new(text, dim, weights.pp("norm1_context"))?),
                false => Text::Changed(Stream::new(text, dim, ["norm1_context", "ff_context"], &weights)?),
            },
        })
    }
}

impl transformer::Block for Block {
    fn forward(&self, state: &State) -> Result<State> {
        let (x, time) = (&state.hidden, &state.time); // (B, N, D), (B, 1, D)
        let text = state.context.as_ref().expect("the embedding makes it"); // (B, L, P)
        let rotary = state.fixed.rotary.as_ref().expect("the embedding makes it");
        let mask = state.fixed.text_mask.as_ref();
        let bias = mask.map(|mask| padding_bias(mask, x.dim(1)?)).transpose()?;
        let context = SequenceContext {
            rotary,
            mask: bias.as_ref(),
        };
        let [scale, gate, scale_mlp, gate_mlp] = self.video.modulation.forward(time)?; // (B, 1, D)
        let norm = self.video.normed(x, &scale)?;
        let (update, text) = match &self.text {
            Text::Read(read) => {
                let (update, _) = self.attn1.forward(&norm, &read.normed(text, time)?, context)?;
                (update, text.clone())
            }
            Text::Changed(stream) => {
                let [scale, gate, scale_mlp, gate_mlp] = stream.modulation.forward(time)?; // (B, 1, P)
                let (update, of_text) = self.attn1.forward(&norm, &stream.normed(text, &scale)?, context)?;
                let of_text = of_text.expect("the layer was loaded to change the text");
                (update, stream.forward(text, &of_text, [&gate, &scale_mlp, &gate_mlp])?)
            }
        };
        Ok(State {
            hidden: self.video.forward(x, &update, [&gate, &scale_mlp, &gate_mlp])?,
            context: Some(text),
            ..state.clone()
        })
    }

    fn flops(&self, state: &State) -> Result<Flops> {
        let text = state.context.as_ref().map_or(Ok(0), |text| text.dim(1))?;
        let video = state.hidden.dim(1)?;
        let of_text = match &self.text {
            Text::Read(_) => Flops::default(),
            Text::Changed(stream) => stream.ff.flops(text)?,
        };
        Ok(self.attn1.flops(video, text)? + self.video.ff.flops(video)? + of_text)
    }
}

/// Returns 1 + x, in f32.
fn one_more(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)? + 1.0
}
