//! Block of CLIP's two transformers, of pictures and of captions: x += attention(norm(x)); x += mlp(norm(x)).
//! arXiv:2103.00020; equals transformers' CLIPEncoderLayer.
//!
//! Shapes: B samples, N tokens, D the width, F the inner width, H heads of K.

use anyhow::ensure;
use candle_core::{Result, Tensor};
use serde::Deserialize;

use super::linear::{Linear, linear};
use super::norm::Norm;
use super::weights::Weights;
use crate::diffusers_config::SIZE;
use crate::ops::activation::{gelu_erf, silu};
use crate::ops::attention::attention;

/// Sizes of a block.
#[derive(Debug, Clone, Copy)]
pub struct ClipLayerSpec {
    /// D
    pub hidden_size: usize,
    /// F
    pub intermediate_size: usize,
    /// H
    pub num_attention_heads: usize,
    /// Activation of the feed-forward layer.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
}

impl ClipLayerSpec {
    /// Checks that a block can have these sizes.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> anyhow::Result<()> {
        for (key, size) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
        ] {
            ensure!(SIZE.contains(&size), "{key}: {size} is not a valid size");
        }
        ensure!(
            self.hidden_size.is_multiple_of(self.num_attention_heads),
            "num_attention_heads: {} do not divide the hidden_size {}",
            self.num_attention_heads,
            self.hidden_size
        );
        ensure!(
            self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0,
            "layer_norm_eps: {}",
            self.layer_norm_eps
        );
        Ok(())
    }
}

/// `hidden_act`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU with the error function.
    Gelu,
    /// x / (1 + e^(-1.702 x))
    QuickGelu,
}

/// One block.
#[derive(Debug)]
pub struct ClipLayer {
    spec: ClipLayerSpec,
    layer_norm1: Norm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: Norm,
    fc1: Linear, // (D, F)
    fc2: Linear, // (F, D)
}

impl ClipLayer {
    /// Loads a block.
    ///
    /// # Errors
    /// Fails for weights that are missing or of another shape.
    pub fn new(spec: ClipLayerSpec, weights: &Weights) -> Result<Self> {
        let (width, inner) = (spec.hidden_size, spec.intermediate_size);
        let attention = weights.pp("self_attn");
        let projection = |name| linear(width, width, attention.pp(name));
        let norm = |name| Norm::layer(width, spec.layer_norm_eps, weights.pp(name));
        Ok(Self {
            layer_norm1: norm("layer_norm1")?,
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            layer_norm2: norm("layer_norm2")?,
            fc1: linear(width, inner, weights.pp("mlp.fc1"))?,
            fc2: linear(inner, width, weights.pp("mlp.fc2"))?,
            spec,
        })
    }

    /// Forward pass (B, N, D) -> (B, N, D); `mask` (1, 1, N, N) is added to the scores.
    pub fn forward(&self, x: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let heads = (batch, tokens, self.spec.num_attention_heads, ());
        let y = self.layer_norm1.forward(&x)?;
        let q = self.q_proj.forward(&y)?.reshape(heads)?; // (B, N, H, K)
        let k = self.k_proj.forward(&y)?.reshape(heads)?;
        let v = self.v_proj.forward(&y)?.reshape(heads)?;
        let y = attention(&q, &k, &v, mask)?.reshape((batch, tokens, width))?;
        let x = (x + self.out_proj.forward(&y)?)?;
        let y = self.fc1.forward(&self.layer_norm2.forward(&x)?)?; // (B, N, F)
        x + self.fc2.forward(&self.spec.hidden_act.forward(&y)?)?
    }
}

impl Activation {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        const QUICK: f64 = 1.702;
        match self {
            Self::Gelu => gelu_erf(x),
            Self::QuickGelu => silu(&(x * QUICK)?)? / QUICK,
        }
    }
}
