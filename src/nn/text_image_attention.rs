//! Cross-attention to a text, and by the same queries to an image if there is one; both are added. Equals diffusers'
//! `WanAttention` with `added_kv_proj_dim`.
//!
//! Shapes: B samples, N tokens, L text tokens, M image tokens, D the width, H heads of width K.

use candle_core::{Result, Tensor};

use super::attention::{Attention, AttentionSpec};
use super::flops::Flops;
use super::linear::{Linear, linear};
use super::norm::Norm;
use super::recall::{LayerKind, output};
use super::weights::Weights;
use crate::ops;

/// The layer.
#[derive(Debug, Clone)]
pub struct TextImageAttention {
    text: Attention,
    image: Option<ImageKeys>,
}

/// Keys and values of an image.
#[derive(Debug, Clone)]
struct ImageKeys {
    add_k_proj: Linear,
    add_v_proj: Linear,
    norm_added_k: Norm,
}

impl TextImageAttention {
    /// Loads the layer, for images of this width if there are any.
    ///
    /// # Errors
    /// Fails for weights that are missing or of another shape.
    pub fn new(form: &AttentionSpec, image_width: Option<usize>, weights: Weights) -> Result<Self> {
        let image = |width: usize| {
            Ok::<_, candle_core::Error>(ImageKeys {
                add_k_proj: linear(width, form.width, weights.pp("add_k_proj"))?,
                add_v_proj: linear(width, form.width, weights.pp("add_v_proj"))?,
                norm_added_k: Norm::rms(form.width, form.eps, weights.pp("norm_added_k"))?,
            })
        };
        Ok(Self {
            image: image_width.map(image).transpose()?,
            text: Attention::new(form, weights)?,
        })
    }

    /// Attention of x (B, N, D) to a text (B, L, D) and an image (B, M, D) -> (B, N, D)
    pub fn forward(&self, x: &Tensor, text: &Tensor, image: Option<&Tensor>) -> Result<Tensor> {
        let (Some(keys), Some(image)) = (&self.image, image) else {
            return self.text.across(x, text, None);
        };
        output(LayerKind::CrossAttention, || {
            let q = self.text.queries(x)?; // (B, N, H, K)
            let k = keys.norm_added_k.forward(&keys.add_k_proj.forward(image)?)?; // (B, M, D)
            let v = keys.add_v_proj.forward(image)?; // (B, M, D)
            let seen = ops::attention(&q, &self.text.heads(&k)?, &self.text.heads(&v)?, None)?; // (B, N, H, K)
            let read = self.text.attend(&q, text, None)?; // (B, N, H, K)
            self.text.out(&ops::add::add(&read, &seen)?)
        })
    }

    /// Returns the floating-point operations for `tokens` tokens that attend to `context` tokens of text and image, whose keys
    /// and values cost the same.
    pub fn flops(&self, tokens: usize, context: usize) -> Result<Flops> {
        self.text.flops(tokens, context)
    }
}
