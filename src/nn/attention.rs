//! Attention with norms of queries and keys: none, over all heads together or head by head (`Attention`, `LTXAttention` and
//! `WanAttention` in diffusers). Joint attention of text and video is self-attention of both as one sequence.
//!
//! Shapes: B samples, S tokens, L tokens of the context, D the width, H heads of width K, D = H K.

use candle_core::{Result, Tensor};

use super::flops::Flops;
use super::linear::Linear;
use super::norm::Norm;
use super::recall::{LayerKind, output};
use super::rope::Rotary;
use super::weights::Weights;
use crate::ops;

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// An RMS norm over all heads together: `rms_norm_across_heads`.
    RmsAcrossHeads,
    /// A layer norm of each head: `layer_norm`.
    LayerPerHead,
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
    /// Kind of the norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Epsilon of these norms, if any.
    pub eps: f64,
}

/// Multi-head attention with norms of queries and keys, if any.
#[derive(Debug, Clone)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear, // to_out.0
    norm_q: Option<Norm>,
    norm_k: Option<Norm>,
    qk_norm: QkNorm,
    num_heads: usize,
}

impl Attention {
    /// Loads the layer.
    ///
    /// # Errors
    /// Fails for weights that are missing or of another shape.
    pub fn new(form: &AttentionSpec, weights: Weights) -> Result<Self> {
        let AttentionSpec {
            width,
            bias,
            qk_norm,
            eps,
            num_heads,
            ..
        } = *form;
        let norm = |name: &str| match qk_norm {
            QkNorm::None => Ok(None),
            QkNorm::RmsAcrossHeads => Norm::rms(width, eps, weights.pp(name)).map(Some),
            QkNorm::LayerPerHead => Norm::layer(width / num_heads.max(1), eps, weights.pp(name)).map(Some),
        };
        let project = |name: &str, bias: bool| Linear::new(width, width, bias, weights.pp(name));
        Ok(Self {
            to_q: project("to_q", bias)?,
            to_k: project("to_k", bias)?,
            to_v: project("to_v", bias)?,
            to_out: project("to_out.0", form.out_bias)?,
            norm_q: norm("norm_q")?,
            norm_k: norm("norm_k")?,
            qk_norm,
            num_heads,
        })
    }

    /// Self-attention of x (B, S, D), rotated if there is a rotation -> (B, S, D)
    pub fn forward(&self, x: &Tensor, rotary: Option<&Rotary>) -> Result<Tensor> {
        output(LayerKind::SelfAttention, || {
            let rotated = |y: Tensor| rotary.map_or(Ok(y.clone()), |rotary| rotary.apply(&y));
            let q = rotated(self.queries(x)?)?; // (B, S, H, K)
            let k = rotated(self.normed(self.norm_k.as_ref(), &self.to_k.forward(x)?)?)?; // (B, S, H, K)
            let v = self.heads(&self.to_v.forward(x)?)?; // (B, S, H, K)
            self.out(&ops::attention(&q, &k, &v, None)?)
        })
    }

    /// Cross-attention of x (B, S, D) to a context (B, L, D), with a bias (B, 1, 1, L) on the scores -> (B, S, D)
    pub fn across(&self, x: &Tensor, context: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        output(LayerKind::CrossAttention, || {
            self.out(&self.attend(&self.queries(x)?, context, mask)?)
        })
    }

    /// Returns the queries (B, S, D) -> (B, S, H, K)
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.normed(self.norm_q.as_ref(), &self.to_q.forward(x)?)
    }

    /// Attention of queries (B, S, H, K) to a context (B, L, D), without the last layer -> (B, S, H, K)
    pub fn attend(&self, q: &Tensor, context: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let k = self.normed(self.norm_k.as_ref(), &self.to_k.forward(context)?)?; // (B, L, H, K)
        let v = self.heads(&self.to_v.forward(context)?)?; // (B, L, H, K)
        ops::attention(q, &k, &v, mask)
    }

    /// Applies the last layer: (B, S, H, K) -> (B, S, D)
    pub fn out(&self, x: &Tensor) -> Result<Tensor> {
        self.to_out.forward(&x.flatten_from(2)?)
    }

    /// Norms queries or keys, and splits their heads: (B, S, D) -> (B, S, H, K)
    fn normed(&self, norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
        match (norm, self.qk_norm) {
            (None, _) | (_, QkNorm::None) => self.heads(x),
            (Some(norm), QkNorm::RmsAcrossHeads) => self.heads(&norm.forward(x)?),
            (Some(norm), QkNorm::LayerPerHead) => norm.forward(&self.heads(x)?),
        }
    }

    /// Returns the floating-point operations for `tokens` tokens that attend to `context` tokens, each once.
    pub fn flops(&self, tokens: usize, context: usize) -> Result<Flops> {
        let width = self.to_q.out_features()? as f64;
        Ok(Flops {
            linear: self.to_q.flops(tokens)?
                + self.to_k.flops(context)?
                + self.to_v.flops(context)?
                + self.to_out.flops(tokens)?,
            attention: 4.0 * tokens as f64 * context as f64 * width,
        })
    }

    /// Splits heads (B, S, D) -> (B, S, H, K)
    pub fn heads(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        x.reshape((batch, tokens, self.num_heads, width / self.num_heads))
    }
}
