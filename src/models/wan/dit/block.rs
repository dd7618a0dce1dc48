//! One transformer block: self-attention, attention to text and image, feed-forward. The timestep modulates what the first
//! and the last are given, and sets their gates. Equals `WanTransformerBlock`.
//!
//! Shapes: B samples, N tokens, L text tokens, M image tokens, D the model's width, H heads of width K.

use candle_core::{Result, Tensor};

use super::config::Config;
use crate::models::denoiser::State;
use crate::nn::attention::{Attention, Form};
use crate::nn::feed_forward::{FeedForward, Gelu, NET};
use crate::nn::norm::{Kind, Modulation};
use crate::nn::{Linear, Norm, ScaleShiftTable, Weights, linear};
use crate::ops;
use crate::ops::residual::gated_residual;

#[derive(Debug, Clone)]
pub struct Block {
    norm1: Norm,
    attn1: Attention,
    norm2: Option<Norm>,
    attn2: CrossAttention,
    norm3: Norm,
    ffn: FeedForward,
    scale_shift_table: ScaleShiftTable<6>,
}

impl Block {
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let form = Form {
            width: dim,
            num_heads: config.num_attention_heads,
            bias: true,
            out_bias: true,
            eps: config.eps,
        };
        let norm2 = || Norm::layer(dim, config.eps, weights.pp("norm2"));
        Ok(Self {
            norm1: Norm::plain(Kind::Layer, dim, config.eps, &weights)?,
            attn1: Attention::new(&form, weights.pp("attn1"))?,
            norm2: config.cross_attn_norm.then(norm2).transpose()?,
            attn2: CrossAttention::new(config, &form, weights.pp("attn2"))?,
            norm3: Norm::plain(Kind::Layer, dim, config.eps, &weights)?,
            ffn: FeedForward::new([dim, config.ffn_dim, dim], NET, Gelu::Tanh, weights.pp("ffn"))?,
            scale_shift_table: ScaleShiftTable::new((1, 6, dim), &weights)?,
        })
    }

    /// # Errors
    /// A state without what the stem puts into it.
    pub fn forward(&self, state: &State) -> Result<State> {
        let (Some(modulation), Some(text), Some(rotary)) = (&state.modulation, &state.text, &state.fixed.rotary) else {
            candle_core::bail!("a state without modulation, text or positions");
        };
        let (x, parts) = (&state.hidden, &state.fixed.parts[..]); // (B, N, D)
        // Each (B, 1, D).
        let [shift_msa, scale_msa, gate_msa, c_shift_msa, c_scale_msa, c_gate_msa] =
            self.scale_shift_table.rows(modulation)?;

        let modulation = Modulation {
            shift: shift_msa,
            scale: scale_msa,
        };
        let norm = self.norm1.modulated(x, &modulation, parts)?;
        let x = gated_residual(x, &self.attn1.forward(&norm, rotary)?, &gate_msa, parts)?;

        let norm = self.norm2.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))?;
        let x = (&x + self.attn2.forward(&norm, text, state.image.as_ref())?)?;

        let modulation = Modulation {
            shift: c_shift_msa,
            scale: c_scale_msa,
        };
        let norm = self.norm3.modulated(&x, &modulation, parts)?;
        let hidden = gated_residual(&x, &self.ffn.forward(&norm)?, &c_gate_msa, parts)?;

        Ok(State {
            hidden,
            ..state.clone()
        })
    }
}

/// Attention to the text, and by the same queries to an image where there is one; both are added up.
#[derive(Debug, Clone)]
struct CrossAttention {
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

impl CrossAttention {
    fn new(config: &Config, form: &Form, weights: Weights) -> Result<Self> {
        let image = |width: usize| {
            Ok::<_, candle_core::Error>(ImageKeys {
                add_k_proj: linear(width, form.width, weights.pp("add_k_proj"))?,
                add_v_proj: linear(width, form.width, weights.pp("add_v_proj"))?,
                norm_added_k: Norm::rms(form.width, form.eps, weights.pp("norm_added_k"))?,
            })
        };
        Ok(Self {
            image: config.added_kv_proj_dim.map(image).transpose()?,
            text: Attention::new(form, weights)?,
        })
    }

    /// x (B, N, D) to a text (B, L, D) and an image (B, M, D) -> (B, N, D)
    fn forward(&self, x: &Tensor, text: &Tensor, image: Option<&Tensor>) -> Result<Tensor> {
        let (Some(keys), Some(image)) = (&self.image, image) else {
            return self.text.across(x, text, None);
        };
        let q = self.text.queries(x)?; // (B, N, H, K)
        let k = keys.norm_added_k.forward(&keys.add_k_proj.forward(image)?)?; // (B, M, D)
        let v = keys.add_v_proj.forward(image)?; // (B, M, D)
        let seen = ops::attention(&q, &self.text.heads(&k)?, &self.text.heads(&v)?, None)?; // (B, N, H, K)
        let read = self.text.attend(&q, text, None)?; // (B, N, H, K)
        self.text.out(&(read + seen)?)
    }
}
