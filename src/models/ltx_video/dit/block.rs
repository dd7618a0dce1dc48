//! Transformer block: self-attention, cross-attention to the text, feed-forward. The timestep modulates the inputs of
//! the first and the last, and sets their gates. Equals `LTXVideoTransformerBlock`.
//!
//! Shapes: B samples, N tokens, L text tokens, D the model's width.

use candle_core::Result;

use super::config::Config;
use crate::models::ada_ln_single::AdaLnSingleBlock;
use crate::models::denoiser::State;
use crate::models::transformer;
use crate::nn::attention::{Attention, AttentionSpec, QkNorm};
use crate::nn::feed_forward::{FeedForward, Gelu, NET};
use crate::nn::flops::Flops;
use crate::nn::norm::NormKind;
use crate::nn::{Norm, ScaleShiftTable, Weights};

/// Epsilon of the norms of queries and keys.
const QK_NORM_EPS: f64 = 1e-5;

#[derive(Debug, Clone)]
pub struct Block {
    modulated: AdaLnSingleBlock, // norm1, attn1, norm2, ff, scale_shift_table
    attn2: Attention,
}

impl Block {
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let form = AttentionSpec {
            width: dim,
            num_heads: config.num_attention_heads,
            bias: config.attention_bias,
            out_bias: config.attention_out_bias,
            qk_norm: QkNorm::RmsAcrossHeads,
            eps: QK_NORM_EPS,
        };
        let (affine, eps) = (config.norm_elementwise_affine, config.norm_eps);
        let norm = |name: &str| Norm::new(NormKind::Rms, affine, dim, eps, weights.pp(name));
        let attn1 = Attention::new(&form, weights.pp("attn1"))?;
        Ok(Self {
            attn2: Attention::new(&form, weights.pp("attn2"))?,
            modulated: AdaLnSingleBlock {
                norm_msa: norm("norm1")?,
                attn1,
                norm_mlp: norm("norm2")?,
                ff: FeedForward::new([dim, 4 * dim, dim], NET, Gelu::Tanh, weights.pp("ff"))?,
                scale_shift_table: ScaleShiftTable::new((6, dim), &weights)?,
            },
        })
    }
}

impl transformer::Block for Block {
    fn forward(&self, state: &State) -> Result<State> {
        let mask = state.fixed.text_bias()?; // (B, 1, 1, L)
        self.modulated
            .forward(state, |x, text| self.attn2.across(x, text, mask.as_ref()))
    }

    fn flops(&self, state: &State) -> Result<Flops> {
        let tokens = state.hidden.dim(1)?;
        let context = state.context.as_ref().map_or(Ok(0), |context| context.dim(1))?;
        Ok(self.modulated.flops(tokens)? + self.attn2.flops(tokens, context)?)
    }
}
