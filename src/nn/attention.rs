//! Attention with an RMS norm of queries and keys over all heads together: `qk_norm="rms_norm_across_heads"` in
//! diffusers (`LTXAttention`, `WanAttention`).
//!
//! Shapes: B samples, S tokens, L tokens of the context, D the width, H heads of width K, D = H K.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::linear::Linear;
use super::norm::Norm;
use super::rope::Rotary;
use super::weights::Weights;
use crate::ops;

/// `qk_norm` of a config: normalisation of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QkNorm {
    /// An RMS norm over all heads together.
    #[serde(rename = "rms_norm_across_heads")]
    RmsAcrossHeads,
}

/// Settings of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSpec {
    /// Width of the tokens, and of the context.
    pub width: usize,
    /// Heads of the attention.
    pub num_heads: usize,
    /// True for biases of queries, keys and values.
    pub bias: bool,
    /// True for a bias of the projection after attention.
    pub out_bias: bool,
    /// Epsilon of the norms of queries and keys.
    pub eps: f64,
}

/// Multi-head attention with norms of queries and keys, as in diffusers' `Attention`.
#[derive(Debug, Clone)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear, // to_out.0
    norm_q: Norm,
    norm_k: Norm,
    num_heads: usize,
}

impl Attention {
    /// Loads the layer.
    ///
    /// # Errors
    /// Fails for weights that are missing or of another shape.
    pub fn new(form: &AttentionSpec, weights: Weights) -> Result<Self> {
        let AttentionSpec { width, bias, eps, .. } = *form;
        let project = |name: &str, bias: bool| Linear::new(width, width, bias, weights.pp(name));
        Ok(Self {
            to_q: project("to_q", bias)?,
            to_k: project("to_k", bias)?,
            to_v: project("to_v", bias)?,
            to_out: project("to_out.0", form.out_bias)?,
            norm_q: Norm::rms(width, eps, weights.pp("norm_q"))?,
            norm_k: Norm::rms(width, eps, weights.pp("norm_k"))?,
            num_heads: form.num_heads,
        })
    }

    /// Self-attention of x (B, S, D), rotated -> (B, S, D)
    pub fn forward(&self, x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        let q = rotary.apply(&self.queries(x)?)?; // (B, S, H, K)
        let k = rotary.apply(&self.heads(&self.norm_k.forward(&self.to_k.forward(x)?)?)?)?; // (B, S, H, K)
        let v = self.heads(&self.to_v.forward(x)?)?; // (B, S, H, K)
        self.out(&ops::attention(&q, &k, &v, None)?)
    }

    /// Cross-attention of x (B, S, D) to a context (B, L, D), with a bias (B, 1, 1, L) on the scores -> (B, S, D)
    pub fn across(&self, x: &Tensor, context: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let out = self.attend(&self.queries(x)?, context, mask)?;
        self.out(&out)
    }

    /// Returns the queries (B, S, D) -> (B, S, H, K)
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.heads(&self.norm_q.forward(&self.to_q.forward(x)?)?)
    }

    /// Attention of queries (B, S, H, K) to a context (B, L, D), without the last layer -> (B, S, H, K)
    pub fn attend(&self, q: &Tensor, context: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let k = self.heads(&self.norm_k.forward(&self.to_k.forward(context)?)?)?; // (B, L, H, K)
        let v = self.heads(&self.to_v.forward(context)?)?; // (B, L, H, K)
        ops::attention(q, &k, &v, mask)
    }

    /// Applies the last layer: (B, S, H, K) -> (B, S, D)
    pub fn out(&self, x: &Tensor) -> Result<Tensor> {
        self.to_out.forward(&x.flatten_from(2)?)
    }

    /// Splits heads (B, S, D) -> (B, S, H, K)
    pub fn heads(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        x.reshape((batch, tokens, self.num_heads, width / self.num_heads))
    }
}
