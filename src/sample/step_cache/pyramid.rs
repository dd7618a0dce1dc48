//! Pyramid attention broadcast: attention layers give what they gave some steps before; everything else runs. Equals
//! diffusers' `PyramidAttentionBroadcastConfig`.  arXiv:2408.12588
//!
//! The i-th pass computes attention if i mod skip = 0, or if its timestep is out of the range. Self-attention (of clip and text
//! as one sequence, too) and cross-attention have a skip each. diffusers takes LTX-Video's cross-attention for self-attention.

use candle_core::{Result, Tensor};

use super::layer_outputs::{LayerOutputs, Rule, Turn};
use super::{Histories, Pass, Step, StepCache, TimestepRange, Work, is_uniform};
use crate::models::denoiser::{Denoiser, Input};
use crate::nn::recall::LayerKind;

/// Settings of the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Passes from one that computes self-attention to the next.
    pub skip: usize,
    /// The same for cross-attention.
    pub cross: usize,
    /// Timesteps in which attention may be reused.
    pub range: TimestepRange,
}

/// Pyramid attention broadcast of a run.
#[derive(Debug)]
pub struct Pyramid {
    settings: Settings,
    steps: Vec<Step>,
    histories: Histories<History>,
}

/// Passes of one kind.
#[derive(Debug, Default)]
struct History {
    passes: usize,
    outputs: LayerOutputs<Attentions>,
}

/// Rule of a step.
#[derive(Debug)]
struct Attentions {
    own: Turn,
    cross: Turn,
}

impl Pyramid {
    /// Cache without a history.
    pub fn new(settings: Settings, steps: &[Step]) -> Self {
        Self {
            settings,
            steps: steps.to_vec(),
            histories: Histories::default(),
        }
    }

    /// Returns the turn of the i-th pass of those with these timesteps.
    fn turn(&self, skip: usize, timesteps: &[f64], i: usize) -> Turn {
        let reuses = |i: usize| match timesteps.get(i) {
            Some(timestep) => !i.is_multiple_of(skip) && self.settings.range.contains(*timestep),
            None => false,
        };
        match (reuses(i), reuses(i + 1)) {
            (true, _) => Turn::Reuse,
            (false, true) => Turn::Store,
            (false, false) => Turn::Compute,
        }
    }
}

impl StepCache for Pyramid {
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, pass: Pass) -> Result<(Tensor, Work)> {
        let steps = self.steps.iter().filter(|step| step.has(pass));
        let timesteps: Vec<f64> = steps.map(|step| step.timestep).collect();
        let i = self.histories.of(pass).passes;
        let rule = Attentions {
            own: self.turn(self.settings.skip, &timesteps, i),
            cross: self.turn(self.settings.cross, &timesteps, i),
        };
        let history = self.histories.of(pass);
        history.passes += 1;
        history.outputs.run(rule, || denoiser.forward(input))
    }

    fn separates_passes(&self) -> bool {
        (self.settings.skip > 1 || self.settings.cross > 1) && !is_uniform(&self.steps)
    }
}

impl Rule for Attentions {
    type History = Vec<Tensor>;

    fn turn(&self, kind: LayerKind) -> Option<Turn> {
        match kind {
            LayerKind::SelfAttention => Some(self.own),
            LayerKind::CrossAttention => Some(self.cross),
            LayerKind::FeedForward => None,
        }
    }

    fn keep(&self, kept: &mut Vec<Tensor>, outputs: &[Tensor]) -> Result<()> {
        *kept = outputs.to_vec();
        Ok(())
    }

    fn recall(&self, kept: &mut Vec<Tensor>) -> Result<Vec<Tensor>> {
        Ok(kept.clone())
    }
}
