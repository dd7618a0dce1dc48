//! Transformer block with cross-attention to the text: self-attention, cross-attention, feed-forward. The timestep
//! modulates the inputs of the first and the last, and sets their gates (adaLN-single, arXiv:2310.00426).
//!
//! Shapes: B samples, N tokens, L text tokens, P parts of the sequence with a timestep each, D the model's width.

use candle_core::{Result, Tensor, bail};

use super::denoiser::State;
use crate::nn::flops::Flops;
use crate::nn::norm::Modulation;
use crate::nn::{Attention, FeedForward, Norm, ScaleShiftTable};
use crate::ops::add::add;
use crate::ops::residual::gated_residual;

/// Everything but the cross-attention; families name the norms differently.
#[derive(Debug, Clone)]
pub struct AdaLnSingleBlock {
    /// Before self-attention.
    pub norm_msa: Norm,
    /// Self-attention of the clip.
    pub attn1: Attention,
    /// Before the feed-forward.
    pub norm_mlp: Norm,
    /// Feed-forward layer.
    pub ff: FeedForward,
    /// Six modulations: shift, scale and gate of attention and feed-forward.
    pub scale_shift_table: ScaleShiftTable<6>,
}

impl AdaLnSingleBlock {
    /// Returns the floating-point operations for `tokens` tokens, without the cross-attention.
    pub fn flops(&self, tokens: usize) -> Result<Flops> {
        Ok(self.attn1.flops(tokens, tokens)? + self.ff.flops(tokens)?)
    }

    /// Forward pass. `across` returns the cross-attention's update of x (B, N, D) from the text (B, L, D).
    ///
    /// # Errors
    /// Fails for a state without the tensors that the embedding adds.
    pub fn forward(&self, state: &State, across: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>) -> Result<State> {
        let (Some(modulation), Some(text), Some(rotary)) = (&state.modulation, &state.context, &state.fixed.rotary)
        else {
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
        let x = gated_residual(x, &self.attn1.forward(&norm, Some(rotary))?, &gate_msa, &parts)?;

        let x = add(&x, &across(&x, text)?)?;

        let modulation = Modulation {
            shift: shift_mlp,
            scale: scale_mlp,
        };
        let norm = self.norm_mlp.modulated(&x, &modulation, &parts)?;
        let hidden = gated_residual(&x, &self.ff.forward_last(&norm, &gate_mlp)?, &gate_mlp, &parts)?;

        Ok(State {
            hidden,
            ..state.clone()
        })
    }
}
