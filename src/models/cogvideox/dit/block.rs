//! Transformer block: joint attention and feed-forward over text and video, each preceded by a norm modulated by the
//! timestep and followed by a gate. Equals `CogVideoXBlock`.
//!
//! Shapes: B samples, L text tokens, N video tokens, S = L + N, D the model's width, H heads of width K, T the time's.

use candle_core::{Result, Tensor};

use super::config::Config;
use crate::models::denoiser::{State, StaticContext};
use crate::models::transformer;
use crate::nn::feed_forward::{FeedForward, Gelu, NET};
use crate::nn::norm::{Modulation, NormKind};
use crate::nn::rope::Rotary;
use crate::nn::{Linear, Norm, Weights, linear};
use crate::ops::activation::silu;
use crate::ops::attention;
use crate::ops::residual::gated_residual;

/// Epsilon of the norms of queries and keys.
const QK_NORM_EPS: f64 = 1e-6;

#[derive(Debug, Clone)]
pub struct Block {
    norm1: LayerNormZero,
    attn1: Attention,
    norm2: LayerNormZero,
    ff: FeedForward,
}

impl Block {
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let dim = config.inner_dim();
        Ok(Self {
            norm1: LayerNormZero::new(config, weights.pp("norm1"))?,
            attn1: Attention::new(config, weights.pp("attn1"))?,
            norm2: LayerNormZero::new(config, weights.pp("norm2"))?,
            ff: FeedForward::new([dim, 4 * dim, dim], NET, Gelu::Tanh, weights.pp("ff"))?,
        })
    }
}

impl transformer::Block for Block {
    fn forward(&self, state: &State) -> Result<State> {
        let (x, StaticContext { parts, rotary, .. }) = (&state.hidden, &*state.fixed); // (B, S, D)
        let (norm, gate) = self.norm1.forward(x, &state.time, parts)?;
        let update = self.attn1.forward(&norm, rotary.as_ref())?; // (B, S, D)
        let x = gated_residual(x, &update, &gate, parts)?;

        let (norm, gate) = self.norm2.forward(&x, &state.time, parts)?;
        let update = self.ff.forward(&norm)?; // (B, S, D)
        let hidden = gated_residual(&x, &update, &gate, parts)?;

        Ok(State {
            hidden,
            ..state.clone()
        })
    }
}

/// Layer norm with shift, scale and gate from the timestep, separate for text and video.
#[derive(Debug, Clone)]
struct LayerNormZero {
    linear: Linear,
    norm: Norm,
}

impl LayerNormZero {
    fn new(config: &Config, weights: Weights) -> Result<Self> {
        Ok(Self {
            linear: linear(config.time_embed_dim, 6 * config.inner_dim(), weights.pp("linear"))?,
            norm: layer_norm(config, config.inner_dim(), weights.pp("norm"))?,
        })
    }

    /// Returns x (B, S, D), normed and modulated, and the gates of text and video, (B, 2, D).
    fn forward(&self, x: &Tensor, time: &Tensor, parts: &[usize]) -> Result<(Tensor, Tensor)> {
        let (batch, _, dim) = x.dims3()?;
        let both = self.linear.forward(&silu(time)?)?.reshape((batch, 2, 3, dim))?; // the video's come first
        let both = Tensor::cat(&[both.narrow(1, 1, 1)?, both.narrow(1, 0, 1)?], 1)?;
        let of = |what: usize| both.narrow(2, what, 1)?.squeeze(2); // (B, 2, D)
        let modulation = Modulation {
            shift: of(0)?,
            scale: of(1)?,
        };
        Ok((self.norm.modulated(x, &modulation, parts)?, of(2)?))
    }
}

/// Self-attention over text and video; queries and keys are normed per head, and the video's are rotated.
#[derive(Debug, Clone)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    norm_q: Norm,
    norm_k: Norm,
    num_heads: usize,
}

impl Attention {
    fn new(config: &Config, weights: Weights) -> Result<Self> {
        let (dim, head_dim) = (config.inner_dim(), config.attention_head_dim);
        let project = |name: &str| Linear::new(dim, dim, config.attention_bias, weights.pp(name));
        Ok(Self {
            to_q: project("to_q")?,
            to_k: project("to_k")?,
            to_v: project("to_v")?,
            to_out: linear(dim, dim, weights.pp("to_out.0"))?,
            norm_q: Norm::layer(head_dim, QK_NORM_EPS, weights.pp("norm_q"))?,
            norm_k: Norm::layer(head_dim, QK_NORM_EPS, weights.pp("norm_k"))?,
            num_heads: config.num_attention_heads,
        })
    }

    /// Forward pass (B, S, D) -> (B, S, D)
    fn forward(&self, x: &Tensor, rotary: Option<&Rotary>) -> Result<Tensor> {
        let (batch, tokens, dim) = x.dims3()?;
        let heads = |y: Tensor| y.reshape((batch, tokens, self.num_heads, dim / self.num_heads));
        let turned = |y: Tensor| rotary.map_or(Ok(y.clone()), |rotary| rotary.apply(&y));
        let q = turned(self.norm_q.forward(&heads(self.to_q.forward(x)?)?)?)?; // (B, S, H, K)
        let k = turned(self.norm_k.forward(&heads(self.to_k.forward(x)?)?)?)?; // (B, S, H, K)
        let v = heads(self.to_v.forward(x)?)?; // (B, S, H, K)
        self.to_out
            .forward(&attention(&q, &k, &v, None)?.reshape((batch, tokens, dim))?)
    }
}

/// Layer norm of blocks and head, with parameters if configured.
pub fn layer_norm(config: &Config, width: usize, weights: Weights) -> Result<Norm> {
    Norm::new(
        NormKind::Layer,
        config.norm_elementwise_affine,
        width,
        config.norm_eps,
        weights,
    )
}
