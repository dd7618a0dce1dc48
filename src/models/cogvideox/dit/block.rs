//! Transformer block: joint attention and feed-forward over text and video, each preceded by a norm modulated by the
//! timestep and followed by a gate. Equals `CogVideoXBlock`.
//!
//! Shapes: B samples, L text tokens, N video tokens, S = L + N, D the model's width.

use candle_core::Result;

use super::config::Config;
use crate::models::denoiser::{State, StaticContext};
use crate::models::transformer;
use crate::nn::ada_norm::AdaLayerNormZero;
use crate::nn::attention::{Attention, AttentionSpec, QkNorm};
use crate::nn::feed_forward::{FeedForward, Gelu, NET};
use crate::nn::flops::Flops;
use crate::nn::norm::NormKind;
use crate::nn::{Norm, Weights};
use crate::ops::residual::gated_residual;

/// Epsilon of the norms of queries and keys.
const QK_NORM_EPS: f64 = 1e-6;

#[derive(Debug, Clone)]
pub struct Block {
    norm1: AdaLayerNormZero,
    attn1: Attention,
    norm2: AdaLayerNormZero,
    ff: FeedForward,
}

impl Block {
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let attention = AttentionSpec {
            width: dim,
            num_heads: config.num_attention_heads,
            bias: config.attention_bias,
            out_bias: true,
            qk_norm: QkNorm::LayerPerHead,
            eps: QK_NORM_EPS,
        };
        let norm = |name: &str| {
            let weights = weights.pp(name);
            let norm = layer_norm(config, weights.pp("norm"))?;
            AdaLayerNormZero::new([config.time_embed_dim, dim], norm, weights)
        };
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(&attention, weights.pp("attn1"))?,
            norm2: norm("norm2")?,
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
        let update = self.ff.forward_last(&norm, &gate)?; // (B, S, D)
        let hidden = gated_residual(&x, &update, &gate, parts)?;

        Ok(State {
            hidden,
            ..state.clone()
        })
    }

    fn flops(&self, state: &State) -> Result<Flops> {
        let tokens = state.hidden.dim(1)?;
        Ok(self.attn1.flops(tokens, tokens)? + self.ff.flops(tokens)?)
    }
}

/// Layer norm of blocks and head, with parameters if configured.
pub fn layer_norm(config: &Config, weights: Weights) -> Result<Norm> {
    Norm::new(
        NormKind::Layer,
        config.norm_elementwise_affine,
        config.inner_dim(),
        config.norm_eps,
        weights,
    )
}
