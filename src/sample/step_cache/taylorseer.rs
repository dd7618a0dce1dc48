//! TaylorSeer: predictions of some steps are extrapolated from those of others. Equals diffusers' `TaylorSeerCacheConfig` with
//! `use_lite_mode`, which extrapolates the output of the last layer; the embedding, blocks and head do not run.  arXiv:2503.06923
//!
//! A step k computes if k < before, k >= after or (k - before - 1) mod interval = 0. Then f_0 is its output, and
//! f_(i+1) = (f_i - the f_i of the last computed step) / (steps since then), up to the order. Another step's output is
//! sum of f_i d^i / i!, d steps after the last that computed. The f are kept in bf16, as they are there by default.

use candle_core::{DType, Result, Tensor};

use super::{Histories, Pass, StepCache, Work};
use crate::models::denoiser::{Denoiser, Input};

/// Settings of the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Steps from one that computes to the next.
    pub interval: usize,
    /// Highest power of the series.
    pub order: usize,
    /// First steps, which all compute.
    pub before: usize,
    /// Step from which on all compute.
    pub after: Option<usize>,
}

/// TaylorSeer of a run.
#[derive(Debug, Clone)]
pub struct TaylorSeer {
    settings: Settings,
    histories: Histories<History>,
}

/// Steps of one pass.
#[derive(Debug, Clone, Default)]
struct History {
    /// Steps so far.
    steps: usize,
    /// Last step that computed.
    last: usize,
    /// f_0, f_1, ... of that step, in bf16; none before the first.
    factors: Vec<Tensor>,
}

impl Settings {
    /// Returns true for a step that computes.
    fn computes(&self, step: usize) -> bool {
        // At the first step after those before, the difference is -1.
        let offset = step as i64 - self.before as i64 - 1;
        step < self.before
            || self.after.is_some_and(|after| step >= after)
            || offset.rem_euclid(self.interval as i64) == 0
    }
}

impl TaylorSeer {
    /// Cache without a history.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            histories: Histories::default(),
        }
    }
}

impl StepCache for TaylorSeer {
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, pass: Pass) -> Result<(Tensor, Work)> {
        let history = self.histories.of(pass);
        let step = history.steps;
        history.steps += 1;
        if !history.factors.is_empty() && !self.settings.computes(step) {
            return Ok((history.extrapolated(step, input.latents.dtype())?, Work::Reused));
        }
        let output = denoiser.forward(input)?.detach();
        history.update(step, &output, self.settings.order)?;
        Ok((output, Work::Computed))
    }

    fn separates_passes(&self) -> bool {
        self.settings.interval > 1
    }
}

impl History {
    fn update(&mut self, step: usize, output: &Tensor, order: usize) -> Result<()> {
        let mut factors = vec![output.clone()];
        for before in self.factors.iter().take(order) {
            let newest = &factors[factors.len() - 1];
            let difference = (newest - before.to_dtype(output.dtype())?)?;
            factors.push((difference / (step - self.last) as f64)?);
        }
        let kept = factors.iter().map(|factor| factor.to_dtype(DType::BF16));
        self.factors = kept.collect::<Result<_>>()?;
        self.last = step;
        Ok(())
    }

    fn extrapolated(&self, step: usize, dtype: DType) -> Result<Tensor> {
        let distance = (step - self.last) as f64;
        let mut coefficient = 1.0;
        let mut sum = self.factors[0].to_dtype(dtype)?;
        for (power, factor) in self.factors.iter().enumerate().skip(1) {
            coefficient *= distance / power as f64;
            sum = (sum + (factor.to_dtype(dtype)? * coefficient)?)?;
        }
        Ok(sum)
    }
}
