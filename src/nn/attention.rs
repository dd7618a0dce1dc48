//! Attention whose queries and keys pass an RMS norm over all heads together: `qk_norm="rms_norm_across_heads"` in
//! diffusers (`LTXAttention`, `WanAttention`).
//!
//! Shapes: B samples, S tokens, L tokens attended to across, D the width, H heads of width K, D = H K.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::linear::Linear;
use super::norm::Norm;
use super::rope::Rotary;
use super::weights::Weights;
use crate::ops;

/// `qk_norm` of a config: how queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QkNorm {
    #[serde(rename = "rms_norm_across_heads")]
    RmsAcrossHeads,
}

/// What an attention layer is like.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Of the tokens, and of what they attend to.
    pub width: usize,
    pub num_heads: usize,
    /// Of queries, keys and values.
    pub bias: bool,
    pub out_bias: bool,
    /// Of the norms of queries and keys.
    pub eps: f64,
}

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
    pub fn new(form: &Form, weights: Weights) -> Result<Self> {
        let Form { width, bias, eps, .. } = *form;
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

    /// x (B, S, D) to itself, turned -> (B, S, D)
    pub fn forward(&self, x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        let q = rotary.apply(&self.queries(x)?)?; // (B, S, H, K)
        let k = rotary.apply(&self.heads(&self.norm_k.forward(&self.to_k.forward(x)?)?)?)?; // (B, S, H, K)
        let v = self.heads(&self.to_v.forward(x)?)?; // (B, S, H, K)
        self.out(&ops::attention(&q, &k, &v, None)?)
    }

    /// x (B, S, D) to a context (B, L, D), under a mask (B, 1, 1, L) that is added to the scores -> (B, S, D)
    pub fn across(&self, x: &Tensor, context: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let out = self.attend(&self.queries(x)?, context, mask)?;
        self.out(&out)
    }

    /// (B, S, D) -> (B, S, H, K)
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.heads(&self.norm_q.forward(&self.to_q.forward(x)?)?)
    }

    /// Queries (B, S, H, K) to a context (B, L, D), without the last layer -> (B, S, H, K)
    pub fn attend(&self, q: &Tensor, context: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let k = self.heads(&self.norm_k.forward(&self.to_k.forward(context)?)?)?; // (B, L, H, K)
        let v = self.heads(&self.to_v.forward(context)?)?; // (B, L, H, K)
        ops::attention(q, &k, &v, mask)
    }

    /// The last layer: (B, S, H, K) -> (B, S, D)
    pub fn out(&self, x: &Tensor) -> Result<Tensor> {
        self.to_out.forward(&x.flatten_from(2)?)
    }

    /// (B, S, D) -> (B, S, H, K)
    pub fn heads(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        x.reshape((batch, tokens, self.num_heads, width / self.num_heads))
    }
}
