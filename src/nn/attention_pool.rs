//! One vector for a text: attention of its mean to the mean and to each of its tokens. Equals `MochiAttentionPool` of
//! diffusers.
//!
//! Padding has no share in the mean and is not attended to; the mean of a text without any token is zero.
//!
//! Shapes: B texts, L tokens, E their width, H heads, D the vector's width.

use candle_core::{DType, Result, Tensor};

use super::joint_attention::padding_bias;
use super::linear::{Linear, linear};
use super::weights::Weights;
use crate::ops::attention::attention;

/// The layer.
#[derive(Debug, Clone)]
pub struct AttentionPool {
    to_kv: Linear,
    to_q: Linear,
    to_out: Linear,
    num_heads: usize,
}

impl AttentionPool {
    /// Loads the layer, from tokens of a width to a vector of another; the first is a multiple of `num_heads`.
    ///
    /// # Errors
    /// Fails for weights that are missing or of another shape.
    pub fn new([width, out]: [usize; 2], num_heads: usize, weights: Weights) -> Result<Self> {
        Ok(Self {
            to_kv: linear(width, 2 * width, weights.pp("to_kv"))?,
            to_q: linear(width, width, weights.pp("to_q"))?,
            to_out: linear(width, out, weights.pp("to_out"))?,
            num_heads,
        })
    }

    /// Forward pass of texts (B, L, E), and a mask (B, L) of 1 and 0 in f32 -> (B, D)
    pub fn forward(&self, text: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let mean = mean(text, mask)?; // (B, 1, E)
        let all = Tensor::cat(&[&mean, text], 1)?; // (B, 1 + L, E)
        let kv = self.to_kv.forward(&all)?.chunk(2, 2)?;
        let heads = |x: &Tensor| x.contiguous()?.reshape((x.dim(0)?, x.dim(1)?, self.num_heads, ()));
        let q = heads(&self.to_q.forward(&mean)?)?; // (B, 1, H, K)
        let bias = mask.map(|mask| padding_bias(mask, 1)).transpose()?; // (B, 1, 1, 1 + L)
        let pooled = attention(&q, &heads(&kv[0])?, &heads(&kv[1])?, bias.as_ref())?; // (B, 1, H, K)
        self.to_out.forward(&pooled.flatten_from(1)?)
    }
}

/// Returns the mean of each text's own tokens, (B, L, E) -> (B, 1, E).
fn mean(text: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let wide = text.to_dtype(DType::F32)?;
    let mean = match mask {
        None => wide.mean_keepdim(1)?,
        Some(mask) => {
            let mask = mask.unsqueeze(2)?; // (B, L, 1)
            let count = mask.sum_keepdim(1)?.maximum(1f64)?;
            wide.broadcast_mul(&mask)?.sum_keepdim(1)?.broadcast_div(&count)?
        }
    };
    mean.to_dtype(text.dtype())
}
