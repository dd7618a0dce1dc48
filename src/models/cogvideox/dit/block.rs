//! One transformer block: attention and feed-forward over text and video together, each behind a norm that the timestep
//! modulates and before a gate that it sets. Equals `CogVideoXBlock`.
//!
//! Shapes: B samples, L text tokens, N video tokens, S = L + N, D the model's width, H heads of width K, T the time's.

use candle_core::{Result, Tensor};

use super::config::Config;
use crate::models::denoiser::State;
use crate::nn::attention::attention;
use crate::nn::rope::Rotary;
use crate::nn::{LayerNorm, Linear, Weights, linear};

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
        Ok(Self {
            norm1: LayerNormZero::new(config, weights.pp("norm1"))?,
            attn1: Attention::new(config, weights.pp("attn1"))?,
            norm2: LayerNormZero::new(config, weights.pp("norm2"))?,
            ff: FeedForward::new(config.inner_dim(), weights.pp("ff"))?,
        })
    }

    pub fn forward(&self, state: &State) -> Result<State> {
        let (norm, gates) = self.norm1.forward(&state.text, &state.hidden, &state.time)?;
        let update = self.attn1.forward(&norm, state.fixed.rotary.as_ref())?; // (B, S, D)
        let (text, hidden) = gates.add(&state.text, &state.hidden, &update)?;

        let (norm, gates) = self.norm2.forward(&text, &hidden, &state.time)?;
        let update = self.ff.forward(&norm)?; // (B, S, D)
        let (text, hidden) = gates.add(&text, &hidden, &update)?;

        Ok(State {
            hidden,
            text,
            time: state.time.clone(),
            fixed: state.fixed.clone(),
        })
    }
}

/// A layer norm whose shift, scale and gate come from the timestep, apart for text and video.
#[derive(Debug, Clone)]
struct LayerNormZero {
    linear: Linear,
    norm: LayerNorm,
}

/// How much of an update each feature takes.
struct Gates {
    text: Tensor,   // (B, 1, D)
    hidden: Tensor, // (B, 1, D)
}

impl LayerNormZero {
    fn new(config: &Config, weights: Weights) -> Result<Self> {
        Ok(Self {
            linear: linear(config.time_embed_dim, 6 * config.inner_dim(), weights.pp("linear"))?,
            norm: layer_norm(config, config.inner_dim(), weights.pp("norm"))?,
        })
    }

    /// Text and video, normed and modulated, as one sequence (B, S, D).
    fn forward(&self, text: &Tensor, hidden: &Tensor, time: &Tensor) -> Result<(Tensor, Gates)> {
        let parts = self.linear.forward(&time.silu()?)?.unsqueeze(1)?.chunk(6, 2)?; // six of (B, 1, D)
        let [shift, scale, gate, text_shift, text_scale, text_gate] = &parts[..] else {
            candle_core::bail!("{} parts of a modulation of 6", parts.len());
        };
        let text = modulate(&self.norm.forward(text)?, text_shift, text_scale)?;
        let hidden = modulate(&self.norm.forward(hidden)?, shift, scale)?;
        let gates = Gates {
            text: text_gate.clone(),
            hidden: gate.clone(),
        };
        Ok((Tensor::cat(&[text, hidden], 1)?, gates))
    }
}

impl Gates {
    /// Adds an update of the whole sequence (B, S, D) to text and video, gated.
    fn add(&self, text: &Tensor, hidden: &Tensor, update: &Tensor) -> Result<(Tensor, Tensor)> {
        let length = text.dim(1)?;
        let of_text = update.narrow(1, 0, length)?.broadcast_mul(&self.text)?;
        let of_video = update.narrow(1, length, hidden.dim(1)?)?.broadcast_mul(&self.hidden)?;
        Ok(((text + of_text)?, (hidden + of_video)?))
    }
}

/// Self-attention over text and video; queries and keys of each head are normed, and those of the video turned.
#[derive(Debug, Clone)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    norm_q: LayerNorm,
    norm_k: LayerNorm,
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
            norm_q: LayerNorm::new(head_dim, QK_NORM_EPS, weights.pp("norm_q"))?,
            norm_k: LayerNorm::new(head_dim, QK_NORM_EPS, weights.pp("norm_k"))?,
            num_heads: config.num_attention_heads,
        })
    }

    /// (B, S, D) -> (B, S, D)
    fn forward(&self, x: &Tensor, rotary: Option<&Rotary>) -> Result<Tensor> {
        let (batch, tokens, dim) = x.dims3()?;
        let heads = |y: Tensor| y.reshape((batch, tokens, self.num_heads, dim / self.num_heads)); // (B, S, H, K)
        let turned = |y: Tensor| {
            let y = y.transpose(1, 2)?.contiguous()?; // (B, H, S, K)
            rotary.map_or(Ok(y.clone()), |rotary| rotary.apply(&y))
        };
        let q = turned(self.norm_q.forward(&heads(self.to_q.forward(x)?)?)?)?; // (B, H, S, K)
        let k = turned(self.norm_k.forward(&heads(self.to_k.forward(x)?)?)?)?; // (B, H, S, K)
        let v = heads(self.to_v.forward(x)?)?.transpose(1, 2)?.contiguous()?; // (B, H, S, K)
        let y = attention(&q, &k, &v)?.transpose(1, 2)?.reshape((batch, tokens, dim))?; // (B, S, D)
        self.to_out.forward(&y)
    }
}

/// Linear, GELU, linear: four times as wide inside.
#[derive(Debug, Clone)]
struct FeedForward {
    proj: Linear, // net.0.proj
    out: Linear,  // net.2
}

impl FeedForward {
    fn new(dim: usize, weights: Weights) -> Result<Self> {
        Ok(Self {
            proj: linear(dim, 4 * dim, weights.pp("net.0.proj"))?,
            out: linear(4 * dim, dim, weights.pp("net.2"))?,
        })
    }

    /// (B, S, D) -> (B, S, D)
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out.forward(&self.proj.forward(x)?.gelu()?)
    }
}

/// The layer norm of blocks and head, with parameters where the config has them.
pub fn layer_norm(config: &Config, width: usize, weights: Weights) -> Result<LayerNorm> {
    if config.norm_elementwise_affine {
        LayerNorm::new(width, config.norm_eps, weights)
    } else {
        Ok(LayerNorm::plain(config.norm_eps))
    }
}

/// x (1 + scale) + shift for x (B, tokens, D), shift and scale (B, 1, D)
pub fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}
