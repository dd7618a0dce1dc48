//! One transformer block: self-attention, attention to the text, feed-forward. The timestep modulates what the first and
//! the last are given, and sets their gates. Equals `LTXVideoTransformerBlock`.
//!
//! Shapes: B samples, N tokens, L text tokens, P parts of the sequence with a timestep each, D the model's width.

use candle_core::{Result, Tensor};

use super::config::Config;
use crate::models::denoiser::State;
use crate::nn::attention::{Attention, Form};
use crate::nn::feed_forward::{FeedForward, Gelu, NET};
use crate::nn::norm::{Kind, Modulation};
use crate::nn::{Norm, ScaleShiftTable, Weights};
use crate::ops::residual::gated_residual;

/// Epsilon of the norms of queries and keys.
const QK_NORM_EPS: f64 = 1e-5;

/// What is added to the score of a text token that is masked.
const MASKED: f64 = -10_000.0;

#[derive(Debug, Clone)]
pub struct Block {
    norm1: Norm,
    attn1: Attention,
    norm2: Norm,
    attn2: Attention,
    ff: FeedForward,
    scale_shift_table: ScaleShiftTable<6>,
}

impl Block {
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let form = Form {
            width: dim,
            num_heads: config.num_attention_heads,
            bias: config.attention_bias,
            out_bias: config.attention_out_bias,
            eps: QK_NORM_EPS,
        };
        let norm = |name: &str| match config.norm_elementwise_affine {
            true => Norm::rms(dim, config.norm_eps, weights.pp(name)),
            false => Norm::plain(Kind::Rms, dim, config.norm_eps, &weights),
        };
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(&form, weights.pp("attn1"))?,
            norm2: norm("norm2")?,
            attn2: Attention::new(&form, weights.pp("attn2"))?,
            ff: FeedForward::new([dim, 4 * dim, dim], NET, Gelu::Tanh, weights.pp("ff"))?,
            scale_shift_table: ScaleShiftTable::new((6, dim), &weights)?,
        })
    }

    /// # Errors
    /// A state without what the stem puts into it.
    pub fn forward(&self, state: &State) -> Result<State> {
        let (Some(modulation), Some(text), Some(rotary)) = (&state.modulation, &state.text, &state.fixed.rotary) else {
            candle_core::bail!("a state without modulation, text or positions");
        };
        let (x, parts) = (&state.hidden, parts(state)?); // (B, N, D)
        // Each (B, P, D).
        let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] =
            self.scale_shift_table.rows(modulation)?;

        let modulation = Modulation {
            shift: shift_msa,
            scale: scale_msa,
        };
        let norm = self.norm1.modulated(x, &modulation, &parts)?;
        let x = gated_residual(x, &self.attn1.forward(&norm, rotary)?, &gate_msa, &parts)?;

        let mask = state.fixed.text_mask.as_ref().map(added).transpose()?; // (B, 1, 1, L)
        let x = (&x + self.attn2.across(&x, text, mask.as_ref())?)?;

        let modulation = Modulation {
            shift: shift_mlp,
            scale: scale_mlp,
        };
        let norm = self.norm2.modulated(&x, &modulation, &parts)?;
        let hidden = gated_residual(&x, &self.ff.forward(&norm)?, &gate_mlp, &parts)?;

        Ok(State {
            hidden,
            ..state.clone()
        })
    }
}

/// 1 and 0, (B, L), as what is added to scores, (B, 1, 1, L).
fn added(mask: &Tensor) -> Result<Tensor> {
    mask.affine(-MASKED, MASKED)?.unsqueeze(1)?.unsqueeze(1)
}

/// Tokens of each part of the sequence that has a timestep of its own: all of it, or every frame.
pub fn parts(state: &State) -> Result<Vec<usize>> {
    let [frames, rows, columns] = state.fixed.grid;
    let count = state.time.dim(1)?;
    Ok(vec![frames * rows * columns / count.max(1); count])
}
