//! Blocks: first with a stream for the clip and one for the text, then with both as one. Equal
//! `HunyuanVideoTransformerBlock`, `HunyuanVideoSingleTransformerBlock`, and their variants for `token_replace`, in which
//! the first frame's tokens have the modulation of timestep 0.
//!
//! Shapes: B samples, N tokens of the clip, L of the text, S = N + L with the clip first, P parts of the clip with a
//! modulation each, D the model's width, F the feed-forward layers'.

use candle_core::{Result, Tensor};

use super::EPS;
use super::config::Config;
use crate::models::denoiser::State;
use crate::models::transformer;
use crate::nn::ada_norm::TimeProjection;
use crate::nn::feed_forward::{FeedForward, Gelu, NET};
use crate::nn::flops::Flops;
use crate::nn::joint_attention::{JointAttention, JointAttentionSpec, Qkv, SequenceContext, padding_bias};
use crate::nn::norm::{Modulation, NormKind};
use crate::nn::{Linear, Norm, Weights, linear};
use crate::ops::activation::gelu_tanh;
use crate::ops::join::{join, part};
use crate::ops::residual::gated_residual;

/// A block of either kind.
#[derive(Debug, Clone)]
pub enum Block {
    /// Two streams.
    Dual(Box<DualBlock>),
    /// One stream.
    Single(Box<SingleBlock>),
}

/// Block with two streams.
#[derive(Debug, Clone)]
pub struct DualBlock {
    attn: JointAttention,
    video: Stream, // norm1, norm2, ff
    text: Stream,  // norm1_context, norm2_context, ff_context
}

/// Norms and feed-forward layer of a stream.
#[derive(Debug, Clone)]
struct Stream {
    modulation: TimeProjection<6>, // norm1
    norm: Norm,                    // without parameters
    ff: FeedForward,
}

/// Block with one stream.
#[derive(Debug, Clone)]
pub struct SingleBlock {
    modulation: TimeProjection<3>, // norm
    norm: Norm,                    // without parameters
    attn: Qkv,
    proj_mlp: Linear, // (F, D)
    proj_out: Linear, // (D, D + F)
}

fn attention_spec(config: &Config) -> JointAttentionSpec {
    JointAttentionSpec::new(config.inner_dim(), config.num_attention_heads, EPS)
}

impl Stream {
    fn new(config: &Config, [norm1, ff]: [&str; 2], weights: &Weights) -> Result<Self> {
        let dim = config.inner_dim();
        Ok(Self {
            modulation: TimeProjection::new(dim, dim, weights.pp(norm1))?,
            norm: Norm::plain(NormKind::Layer, dim, EPS, weights)?,
            ff: FeedForward::new([dim, config.mlp_dim(), dim], NET, Gelu::Tanh, weights.pp(ff))?,
        })
    }

    fn normed(&self, x: &Tensor, shift: &Tensor, scale: &Tensor, parts: &[usize]) -> Result<Tensor> {
        let modulation = Modulation {
            shift: shift.clone(),
            scale: scale.clone(),
        };
        self.norm.modulated(x, &modulation, parts)
    }
}

impl DualBlock {
    fn forward(&self, state: &State, text: &Tensor) -> Result<State> {
        let (x, parts, whole) = (&state.hidden, &state.fixed.parts, [text.dim(1)?]);
        let [shift, scale, gate, shift_mlp, scale_mlp, gate_mlp] = self.video.modulation.forward(&state.time)?; // (B, P, D)
        let [c_shift, c_scale, c_gate, c_shift_mlp, c_scale_mlp, c_gate_mlp] =
            self.text.modulation.forward(&ordinary(&state.time)?)?; // (B, 1, D)
        let norm = self.video.normed(x, &shift, &scale, parts)?; // (B, N, D)
        let c_norm = self.text.normed(text, &c_shift, &c_scale, &whole)?; // (B, L, D)
        let bias = bias(state)?;
        let (update, c_update) = self.attn.forward(&norm, &c_norm, context(state, bias.as_ref())?)?;
        let c_update = c_update.expect("the layer was loaded to change the text");
        let x = gated_residual(x, &update, &gate, parts)?; // (B, N, D)
        let text = gated_residual(text, &c_update, &c_gate, &whole)?; // (B, L, D)

        let update = self
            .video
            .ff
            .forward(&self.video.normed(&x, &shift_mlp, &scale_mlp, parts)?)?;
        let c_update = self
            .text
            .ff
            .forward(&self.text.normed(&text, &c_shift_mlp, &c_scale_mlp, &whole)?)?;
        Ok(State {
            hidden: gated_residual(&x, &update, &gate_mlp, parts)?,
            context: Some(gated_residual(&text, &c_update, &c_gate_mlp, &whole)?),
            ..state.clone()
        })
    }
}

impl SingleBlock {
    fn forward(&self, state: &State, text: &Tensor) -> Result<State> {
        let (count, length) = (state.hidden.dim(1)?, text.dim(1)?);
        let mut parts = state.fixed.parts.clone(); // the text has the last part's modulation
        *parts.last_mut().expect("a clip has at least one part") += length;
        let x = join(&state.hidden, text, 1)?; // (B, S, D)
        let [shift, scale, gate] = self.modulation.forward(&state.time)?; // (B, P, D)
        let norm = self.norm.modulated(&x, &Modulation { shift, scale }, &parts)?; // (B, S, D)
        let bias = bias(state)?;
        let attended = self.attn.attend(&norm, context(state, bias.as_ref())?)?; // (B, S, D)
        let mlp = gelu_tanh(&self.proj_mlp.forward(&norm)?)?; // (B, S, F)
        let update = self.proj_out.forward(&join(&attended, &mlp, 2)?)?; // (B, S, D)
        let x = gated_residual(&x, &update, &gate, &parts)?; // (B, S, D)
        Ok(State {
            hidden: part(&x, 1, 0, count)?,
            context: Some(part(&x, 1, count, length)?),
            ..state.clone()
        })
    }
}

impl Block {
    /// Loads a block with two streams.
    pub fn dual(config: &Config, weights: Weights) -> Result<Self> {
        Ok(Self::Dual(Box::new(DualBlock {
            attn: JointAttention::new(attention_spec(config), weights.pp("attn"))?,
            video: Stream::new(config, ["norm1", "ff"], &weights)?,
            text: Stream::new(config, ["norm1_context", "ff_context"], &weights)?,
        })))
    }

    /// Loads a block with one stream.
    pub fn single(config: &Config, weights: Weights) -> Result<Self> {
        let (dim, mlp) = (config.inner_dim(), config.mlp_dim());
        Ok(Self::Single(Box::new(SingleBlock {
            modulation: TimeProjection::new(dim, dim, weights.pp("norm"))?,
            norm: Norm::plain(NormKind::Layer, dim, EPS, &weights)?,
            attn: Qkv::shared(attention_spec(config), &weights.pp("attn"))?,
            proj_mlp: linear(dim, mlp, weights.pp("proj_mlp"))?,
            proj_out: linear(dim + mlp, dim, weights.pp("proj_out"))?,
        })))
    }
}

impl transformer::Block for Block {
    fn forward(&self, state: &State) -> Result<State> {
        let text = state.context.as_ref().expect("the embedding makes it");
        match self {
            Self::Dual(block) => block.forward(state, text),
            Self::Single(block) => block.forward(state, text),
        }
    }

    fn flops(&self, state: &State) -> Result<Flops> {
        let text = state.context.as_ref().map_or(Ok(0), |text| text.dim(1))?;
        let video = state.hidden.dim(1)?;
        let tokens = video + text;
        match self {
            Self::Dual(block) => {
                Ok(block.attn.flops(video, text)? + block.video.ff.flops(video)? + block.text.ff.flops(text)?)
            }
            Self::Single(block) => Ok(Flops {
                linear: block.attn.flops(tokens)? + block.proj_mlp.flops(tokens)? + block.proj_out.flops(tokens)?,
                attention: 4.0 * (tokens as f64).powi(2) * block.proj_out.out_features()? as f64,
            }),
        }
    }
}

/// Returns the embedding of the clip's own timestep, the last of (B, P, D): (B, 1, D)
fn ordinary(time: &Tensor) -> Result<Tensor> {
    time.narrow(1, time.dim(1)? - 1, 1)
}

fn bias(state: &State) -> Result<Option<Tensor>> {
    let count = state.hidden.dim(1)?;
    let mask = state.fixed.text_mask.as_ref();
    mask.map(|mask| padding_bias(mask, count)).transpose()
}

fn context<'a>(state: &'a State, mask: Option<&'a Tensor>) -> Result<SequenceContext<'a>> {
    let rotary = state.fixed.rotary.as_ref().expect("the embedding makes it");
    Ok(SequenceContext { rotary, mask })
}
