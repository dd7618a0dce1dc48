//! Transformer block: self-attention, cross-attention to text and image, feed-forward. The timestep modulates the
//! inputs of the first and the last, and sets their gates. Equals `WanTransformerBlock`.
//!
//! Shapes: B samples, N tokens, L text tokens, D the model's width.

use candle_core::{Result, Tensor};

use super::config::Config;
use crate::models::ada_ln_single::AdaLnSingleBlock;
use crate::models::denoiser::State;
use crate::models::transformer;
use crate::nn::attention::{Attention, AttentionSpec, QkNorm};
use crate::nn::feed_forward::{FeedForward, Gelu, NET};
use crate::nn::flops::Flops;
use crate::nn::norm::NormKind;
use crate::nn::text_image_attention::TextImageAttention;
use crate::nn::{Norm, ScaleShiftTable, Weights};

#[derive(Debug, Clone)]
pub struct Block {
    modulated: AdaLnSingleBlock, // norm1, attn1, norm3, ffn, scale_shift_table
    norm2: Option<Norm>,
    attn2: TextImageAttention,
}

impl Block {
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let form = AttentionSpec {
            width: dim,
            num_heads: config.num_attention_heads,
            bias: true,
            out_bias: true,
            qk_norm: QkNorm::RmsAcrossHeads,
            eps: config.eps,
        };
        let norm2 = || Norm::layer(dim, config.eps, weights.pp("norm2"));
        let norm = Norm::plain(NormKind::Layer, dim, config.eps, &weights)?; // norm1 and norm3 alike
        let attn1 = Attention::new(&form, weights.pp("attn1"))?;
        Ok(Self {
            norm2: config.cross_attn_norm.then(norm2).transpose()?,
            attn2: TextImageAttention::new(&form, config.added_kv_proj_dim, weights.pp("attn2"))?,
            modulated: AdaLnSingleBlock {
                norm_msa: norm.clone(),
                attn1,
                norm_mlp: norm,
                ff: FeedForward::new([dim, config.ffn_dim, dim], NET, Gelu::Tanh, weights.pp("ffn"))?,
                scale_shift_table: ScaleShiftTable::new((1, 6, dim), &weights)?,
            },
        })
    }
}

impl transformer::Block for Block {
    fn forward(&self, state: &State) -> Result<State> {
        self.modulated.forward(state, |x, text| {
            let norm = self.norm2.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(x))?;
            self.attn2.forward(&norm, text, state.image.as_ref())
        })
    }

    fn flops(&self, state: &State) -> Result<Flops> {
        let tokens = state.hidden.dim(1)?;
        let count = |context: &Option<Tensor>| context.as_ref().map_or(Ok(0), |context| context.dim(1));
        let context = count(&state.context)? + count(&state.image)?;
        Ok(self.modulated.flops(tokens)? + self.attn2.flops(tokens, context)?)
    }
}
