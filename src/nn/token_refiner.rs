//! Refinement of the text before a transformer's blocks: self-attention over the caption, gated by the timestep and the
//! caption's mean. Equals `HunyuanVideoTokenRefiner` of diffusers.
//!
//! Shapes: B samples, L text tokens, E the text's width, D the model's, H heads of width K.

use candle_core::{DType, Result, Tensor};

use super::ada_norm::TimeProjection;
use super::embed::{TimeEmbedder, TimestepEmbedding};
use super::recall::{LayerKind, output};
use super::{Linear, Norm, Weights, linear};
use crate::ops::activation::silu;
use crate::ops::attention::attention;
use crate::ops::residual::gated_residual;

/// Inner width of the feed-forward layers, in widths of the model, whatever the other blocks have.
const MLP_RATIO: usize = 4;

/// Sizes of a refiner.
#[derive(Debug, Clone, Copy)]
pub struct TokenRefinerSpec {
    /// Width of the text, E.
    pub text_dim: usize,
    /// Width of the model, D.
    pub dim: usize,
    /// Heads of the attention, H.
    pub num_heads: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Sines and cosines of a timestep.
    pub time_width: usize,
    /// Epsilon of the norms.
    pub eps: f64,
}

/// The refiner.
#[derive(Debug, Clone)]
pub struct TokenRefiner {
    timestep_embedder: TimeEmbedder,  // time_text_embed.timestep_embedder
    text_embedder: TimestepEmbedding, // time_text_embed.text_embedder
    proj_in: Linear,
    refiner_blocks: Vec<RefinerBlock>, // token_refiner.refiner_blocks
}

#[derive(Debug, Clone)]
struct RefinerBlock {
    norm1: Norm,
    attn: RefinerAttention,
    norm2: Norm,
    proj: Linear,                // ff.net.0.proj
    out: Linear,                 // ff.net.2
    norm_out: TimeProjection<2>, // gates of attention and feed-forward layer
}

#[derive(Debug, Clone)]
struct RefinerAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear, // to_out.0
    num_heads: usize,
}

impl TokenRefiner {
    /// Reads `time_text_embed`, `proj_in` and `token_refiner.refiner_blocks`.
    pub fn new(spec: TokenRefinerSpec, weights: Weights) -> Result<Self> {
        let TokenRefinerSpec { text_dim, dim, .. } = spec;
        let (embed, blocks) = (
            weights.pp("time_text_embed"),
            weights.pp("token_refiner.refiner_blocks"),
        );
        Ok(Self {
            timestep_embedder: TimeEmbedder::new(spec.time_width, dim, embed.pp("timestep_embedder"))?,
            text_embedder: TimestepEmbedding::new(text_dim, dim, embed.pp("text_embedder"))?,
            proj_in: linear(text_dim, dim, weights.pp("proj_in"))?,
            refiner_blocks: (0..spec.num_layers)
                .map(|i| RefinerBlock::new(spec, blocks.pp(i)))
                .collect::<Result<_>>()?,
        })
    }

    /// Forward pass of captions (B, L, E), their timesteps (B), and a mask (B, L) of 1 and 0 in f32 -> (B, L, D)
    pub fn forward(&self, text: &Tensor, timestep: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let mean = match mask {
            None => text.to_dtype(DType::F32)?.mean(1)?,
            Some(mask) => {
                let mask = mask.unsqueeze(2)?; // (B, L, 1)
                text.to_dtype(DType::F32)?
                    .broadcast_mul(&mask)?
                    .sum(1)?
                    .broadcast_div(&mask.sum(1)?)?
            }
        }; // (B, E) f32
        let time = (self.timestep_embedder.forward(timestep)? + self.text_embedder.forward(&mean)?)?.unsqueeze(1)?; // (B, 1, D)
        let bias = mask.map(bias).transpose()?;
        let mut hidden = self.proj_in.forward(text)?; // (B, L, D)
        for block in &self.refiner_blocks {
            hidden = block.forward(&hidden, &time, bias.as_ref())?; // (B, L, D)
        }
        Ok(hidden)
    }
}

impl RefinerBlock {
    fn new(spec: TokenRefinerSpec, weights: Weights) -> Result<Self> {
        let TokenRefinerSpec { dim, eps, .. } = spec;
        Ok(Self {
            norm1: Norm::layer(dim, eps, weights.pp("norm1"))?,
            attn: RefinerAttention::new(spec, weights.pp("attn"))?,
            norm2: Norm::layer(dim, eps, weights.pp("norm2"))?,
            proj: linear(dim, MLP_RATIO * dim, weights.pp("ff.net.0.proj"))?,
            out: linear(MLP_RATIO * dim, dim, weights.pp("ff.net.2"))?,
            norm_out: TimeProjection::new(dim, dim, weights.pp("norm_out"))?,
        })
    }

    /// Forward pass (B, L, D), time (B, 1, D) -> (B, L, D)
    fn forward(&self, x: &Tensor, time: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let parts = [x.dim(1)?];
        let [gate_msa, gate_mlp] = self.norm_out.forward(time)?; // (B, 1, D)
        let update = self.attn.forward(&self.norm1.forward(x)?, bias)?;
        let x = gated_residual(x, &update, &gate_msa, &parts)?;
        let update = self
            .out
            .forward(&silu(&self.proj.forward(&self.norm2.forward(&x)?)?)?)?;
        gated_residual(&x, &update, &gate_mlp, &parts)
    }
}

impl RefinerAttention {
    fn new(spec: TokenRefinerSpec, weights: Weights) -> Result<Self> {
        let dim = spec.dim;
        let projection = |name: &str| linear(dim, dim, weights.pp(name));
        Ok(Self {
            to_q: projection("to_q")?,
            to_k: projection("to_k")?,
            to_v: projection("to_v")?,
            to_out: projection("to_out.0")?,
            num_heads: spec.num_heads,
        })
    }

    /// Forward pass (B, L, D), with a bias (B, 1, L, L) on the scores -> (B, L, D)
    fn forward(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        output(LayerKind::SelfAttention, || {
            let (batch, tokens, _) = x.dims3()?;
            let heads = |x: Tensor| x.reshape((batch, tokens, self.num_heads, ()));
            let (q, k) = (heads(self.to_q.forward(x)?)?, heads(self.to_k.forward(x)?)?); // (B, L, H, K)
            let y = attention(&q, &k, &heads(self.to_v.forward(x)?)?, bias)?;
            self.to_out.forward(&y.flatten_from(2)?)
        })
    }
}

/// Returns what is added to the scores: a caption's own tokens see each other, and all see the first, so that no padding
/// sees nothing: (B, L) -> (B, 1, L, L)
fn bias(mask: &Tensor) -> Result<Tensor> {
    let (batch, tokens) = mask.dims2()?;
    let own: Vec<Vec<f32>> = mask.to_vec2()?;
    let mut bias = Vec::with_capacity(batch * tokens * tokens);
    for own in &own {
        for query in own {
            let seen = own
                .iter()
                .enumerate()
                .map(|(at, key)| at == 0 || (*query != 0.0 && *key != 0.0));
            bias.extend(seen.map(|seen| if seen { 0.0 } else { f32::NEG_INFINITY }));
        }
    }
    Tensor::from_vec(bias, (batch, 1, tokens, tokens), mask.device())
}
