//! MagCache: blocks are skipped while measured ratios say that little changes. Equals diffusers' `MagCacheConfig`.
//! arXiv:2506.09045
//!
//! A model's table has for each step the ratio of the magnitude of what all blocks add to that of the step before. After the
//! first steps (a share `retention` of them), a step multiplies its ratio into q and adds |1 - q| to an error e. It reuses
//! what the blocks added last if e <= threshold and no more than `max_skips` steps did so in a row; else all blocks run, and
//! q = 1, e = 0. Tables for another number of steps are taken at the nearest places. All numbers are f32, as there.

use std::path::Path;

use anyhow::{Context, ensure};
use candle_core::{D, DType, Result, Tensor};

use super::{Histories, Pass, StepCache, Work, run_from};
use crate::models::denoiser::{Denoiser, Input};

/// Settings of the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Largest error of a step that reuses.
    pub threshold: f32,
    /// Most steps in a row that reuse.
    pub max_skips: usize,
    /// Share of the steps, from the first on, that all compute.
    pub retention: f64,
}

/// MagCache of a run.
#[derive(Debug, Clone)]
pub struct MagCache {
    settings: Settings,
    /// Ratio of each step.
    ratios: Vec<f32>,
    histories: Histories<History>,
}

/// Steps of one pass.
#[derive(Debug, Clone)]
struct History {
    steps: usize,
    /// Change by all blocks in the last step that computed, (B, N, D)
    residual: Option<Tensor>,
    ratio: f32,
    error: f32,
    skips: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            steps: 0,
            residual: None,
            ratio: 1.0,
            error: 0.0,
            skips: 0,
        }
    }
}

/// Reads a table of ratios: a list of numbers in JSON, one a step.
///
/// # Errors
/// Fails for a file that cannot be read, and for anything but a list of numbers above 0.
pub fn read_ratios(path: &Path) -> anyhow::Result<Vec<f32>> {
    let named = || format!("{}: not a table of ratios", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    let ratios: Vec<f32> = serde_json::from_str(&text).with_context(named)?;
    ensure!(
        !ratios.is_empty() && ratios.iter().all(|ratio| ratio.is_finite() && *ratio > 0.0),
        "{}: must be numbers above 0, one for each step",
        named()
    );
    Ok(ratios)
}

/// Returns a table for another number of steps, by the nearest of its ratios.
fn for_steps(ratios: &[f32], num_steps: usize) -> Vec<f32> {
    let last = ratios.len() - 1;
    if num_steps <= 1 {
        return vec![ratios[last]; num_steps];
    }
    let scale = (last as f64 / (num_steps - 1) as f64) as f32;
    let place = |step: usize| (step as f32 * scale).round_ties_even() as usize;
    (0..num_steps).map(|step| ratios[place(step).min(last)]).collect()
}

impl MagCache {
    /// Cache of a run of `num_steps`, by a table of ratios, which is not empty.
    pub fn new(settings: Settings, ratios: &[f32], num_steps: usize) -> Self {
        Self {
            settings,
            ratios: match ratios.len() == num_steps {
                true => ratios.to_vec(),
                false => for_steps(ratios, num_steps),
            },
            histories: Histories::default(),
        }
    }
}

impl StepCache for MagCache {
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, pass: Pass) -> Result<(Tensor, Work)> {
        let retained = (self.settings.retention * self.ratios.len() as f64 + 0.5) as usize;
        let history = self.histories.of(pass);
        let ratio = self.ratios.get(history.steps).copied().unwrap_or(1.0);
        let may_reuse = history.steps >= retained && history.advance(ratio, &self.settings);
        history.steps += 1;
        let embedded = denoiser.embed(input)?;
        let clip = embedded.clip()?;
        if let Some(residual) = history.residual.as_ref().filter(|_| may_reuse) {
            let ended = embedded.with_clip((clip + residual)?)?;
            return Ok((denoiser.head(&ended)?, Work::Reused));
        }
        let ended = run_from(denoiser, 0, &embedded)?;
        history.residual = Some((ended.clip()? - clip)?.detach());
        Ok((denoiser.head(&ended)?, Work::Computed))
    }

    fn separates_passes(&self) -> bool {
        self.settings.threshold > 0.0
    }
}

impl History {
    /// Returns true if a step with this ratio may reuse; starts anew if it may not.
    fn advance(&mut self, ratio: f32, settings: &Settings) -> bool {
        self.ratio *= ratio;
        self.skips += 1;
        self.error += (1.0 - self.ratio).abs();
        let reuses = self.residual.is_some() && self.error <= settings.threshold && self.skips <= settings.max_skips;
        if !reuses {
            (self.ratio, self.error, self.skips) = (1.0, 0.0, 0);
        }
        reuses
    }
}

/// Measurement of a model's ratios: every block runs in every step.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    residuals: Histories<Option<Tensor>>,
    ratios: Vec<f32>,
}

impl StepCache for Calibration {
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, pass: Pass) -> Result<(Tensor, Work)> {
        let embedded = denoiser.embed(input)?;
        let ended = run_from(denoiser, 0, &embedded)?;
        let residual = (ended.clip()? - embedded.clip()?)?.to_dtype(DType::F32)?.detach();
        let before = self.residuals.of(pass).replace(residual.clone());
        if pass == Pass::Positive {
            let length = |residual: &Tensor| residual.sqr()?.sum(D::Minus1)?.sqrt(); // (B, N)
            self.ratios.push(match before {
                Some(before) => {
                    let ratio = (length(&residual)? / (length(&before)? + 1e-8)?)?;
                    ratio.mean_all()?.to_scalar()?
                }
                None => 1.0,
            });
        }
        Ok((denoiser.head(&ended)?, Work::Computed))
    }

    fn separates_passes(&self) -> bool {
        true
    }

    fn ratios(&self) -> Option<&[f32]> {
        Some(&self.ratios)
    }
}
