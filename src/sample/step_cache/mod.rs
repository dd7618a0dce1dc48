//! Caches between denoising steps: the only place that may skip a part of the transformer. Consecutive steps change
//! little, so that a cache may reuse what an earlier step computed.
//!
//! A denoiser is a list of blocks ([`Denoiser`]); what some caches reuse is what all of them, or all but the first, do to
//! the clip's tokens. Text tokens are of no use behind the last block, and are not kept. Others reuse what single layers give, by
//! answering in their place ([`crate::nn::recall`]). Each pass of guidance has a history of its own, and decides by itself. Equal the hooks of diffusers, which decide for both passes together where a pipeline runs
//! them as one batch.

use candle_core::{Result, Tensor};

use crate::diffusion::guidance::NeededPasses;
use crate::models::denoiser::{Denoiser, Input, State};

pub mod config;
pub mod faster_cache;
pub mod first_block;
mod halved;
mod layer_outputs;
mod low_pass;
pub mod mag_cache;
pub mod pyramid;
mod series;
pub mod taylorseer;
mod timestep_range;

pub use config::Config;
pub use timestep_range::TimestepRange;

/// A step that a run will take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Timestep of which 1000 is noise, whatever the network's own time is.
    pub timestep: f64,
    /// Passes that it needs.
    pub passes: NeededPasses,
}

impl Step {
    /// Returns true for a step with this pass.
    pub fn has(&self, pass: Pass) -> bool {
        match self.passes {
            NeededPasses::None => false,
            NeededPasses::Prompt => pass == Pass::Positive,
            NeededPasses::Both => true,
        }
    }
}

/// Returns true for a run whose steps all have the same passes, so that two may be one batch in all of them.
fn is_uniform(steps: &[Step]) -> bool {
    steps.windows(2).all(|pair| pair[0].passes == pair[1].passes)
}

/// Passes of a step, each with a history of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Under the negative prompt.
    Negative,
    /// Under the prompt.
    Positive,
    /// Under both, as one batch.
    Both,
}

/// Origin of a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// All blocks ran.
    Computed,
    /// Blocks, or layers in them, were skipped.
    Reused,
}

/// A cache between steps. Of the passes of a step, that with the prompt comes first.
pub trait StepCache {
    /// Returns the denoiser's prediction for an input, computed or reused.
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, pass: Pass) -> Result<(Tensor, Work)>;

    /// Returns true if passes run one by one, since each decides by its own history; false for a cache that decides for both alike,
    /// or reuses nothing, which then gives the bits of plain sampling.
    fn separates_passes(&self) -> bool;

    /// Returns the measured ratios of the pass with the prompt, for a cache that measures some.
    fn ratios(&self) -> Option<&[f32]> {
        None
    }
}

/// Computation of everything in every step.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCache;

impl StepCache for NoCache {
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, _pass: Pass) -> Result<(Tensor, Work)> {
        Ok((denoiser.forward(input)?, Work::Computed))
    }

    fn separates_passes(&self) -> bool {
        false
    }
}

/// State of a cache, for each pass.
#[derive(Debug, Clone, Default)]
struct Histories<H>([H; 3]);

impl<H> Histories<H> {
    fn of(&mut self, pass: Pass) -> &mut H {
        &mut self.0[pass as usize]
    }
}

/// Runs the blocks from `first` on.
fn run_from(denoiser: &dyn Denoiser, first: usize, state: &State) -> Result<State> {
    let mut state = state.clone();
    for index in first..denoiser.num_blocks() {
        state = denoiser.block(index, &state)?;
    }
    Ok(state)
}
