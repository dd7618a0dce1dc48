//! Caches between denoising steps: the only place that may skip a part of the transformer. Consecutive steps change
//! little, so that a cache may reuse what an earlier step computed.

use candle_core::{Result, Tensor};

use crate::models::denoiser::{Denoiser, Input};

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

/// A cache between steps. Its passes come in the same order in every step.
pub trait StepCache {
    /// Returns the denoiser's prediction for an input, computed or reused.
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, pass: Pass) -> Result<Tensor>;
}

/// Computation of everything in every step.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCache;

impl StepCache for NoCache {
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, _pass: Pass) -> Result<Tensor> {
        denoiser.forward(input)
    }
}
