//! The block of transformers that attend across to their text: self-attention, attention to the text, feed-forward. The
//! timestep modulates what the first and the last are given, and sets their gates (adaLN-single, arXiv:2310.00426).
//!
//! Shapes: B samples, N tokens, L text tokens, P parts of the sequence with a timestep each, D the model's width.

use candle_core::{Result, Tensor, bail};

use super::denoiser::State;
use crate::nn::norm::Modulation;
use crate::nn::{Attention, FeedForward, Norm, ScaleShiftTable};
use crate::ops::add::add;
use crate::ops::residual::gated_residual;

/// All but the attention to the text; families name the norms differently.
#[derive(Debug, Clone)]
pub struct Modulated {
    /// Before self-attention.
    pub norm_msa: Norm,
    pub attn1: Attention,
    /// Before the feed-forward.
    pub norm_mlp: Norm,
    pub ff: FeedForward,
    pub scale_shift_table: ScaleShiftTable<6>,
}

impl Modulated {
    /// `across`: what attending to the text (B, L, D) adds to x (B, N, D).
    ///
    /// # Errors
    /// A state without what the stem puts into it.
    pub fn forward(&self, state: &State, across: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>) -> Result<State> {
        let (Some(modulation), Some(text), Some(rotary)) = (&state.modulation, &state.text, &state.fixed.rotary) else {
            bail!("a state without modulation, text or positions");
        };
        let (x, parts) = (&state.hidden, state.timed_parts()?); // (B, N, D)
        // Each (B, P, D).
        let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] =
            self.scale_shift_table.rows(modulation)?;

        let modulation = Modulation {
            shift: shift_msa,
            scale: scale_msa,
        };
        let norm = self.norm_msa.modulated(x, &modulation, &parts)?;
        let x = gated_residual(x, &self.attn1.forward(&norm, rotary)?, &gate_msa, &parts)?;

        let x = add(&x, &across(&x, text)?)?;

        let modulation = Modulation {
            shift: shift_mlp,
            scale: scale_mlp,
        };
        let norm = self.norm_mlp.modulated(&x, &modulation, &parts)?;
        let hidden = gated_residual(&x, &self.ff.forward(&norm)?, &gate_mlp, &parts)?;

        Ok(State {
            hidden,
            ..state.clone()
        })
    }
}
