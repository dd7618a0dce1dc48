//! Configuration of `CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler`: a table of noise by timestep.

use anyhow::ensure;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{check_train_timesteps, thousand, yes};

/// Settings of both CogVideoX schedulers, with the defaults of their classes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Number of timesteps of the forward process.
    #[serde(default = "thousand")]
    pub num_train_timesteps: usize,
    /// Variance added by the first timestep.
    #[serde(default = "beta_start")]
    pub beta_start: f64,
    /// Variance added by the last timestep.
    #[serde(default = "beta_end")]
    pub beta_end: f64,
    /// Growth of the variance in between.
    #[serde(default)]
    pub beta_schedule: BetaSchedule,
    /// Explicit list of betas, which replaces a schedule.
    #[serde(default)]
    pub trained_betas: Option<Vec<f64>>,
    /// True if no noise is left after timestep 0; false for as much as at timestep 0.
    #[serde(default = "yes")]
    pub set_alpha_to_one: bool,
    /// Added to timesteps spaced as `leading`.
    #[serde(default)]
    pub steps_offset: usize,
    /// Quantity that the network predicts.
    #[serde(default)]
    pub prediction_type: Prediction,
    /// Spacing of the timesteps visited in sampling.
    #[serde(default)]
    pub timestep_spacing: Spacing,
    /// True if the last timestep is pure noise.
    #[serde(default)]
    pub rescale_betas_zero_snr: bool,
    /// Above 1 adds noise: the signal-to-noise ratio is divided by it.
    #[serde(default = "three")]
    pub snr_shift_scale: f64,

    // Written by diffusers, but unused by these two schedulers.
    #[serde(default, rename = "_class_name")]
    _class_name: IgnoredAny,
    #[serde(default, rename = "_diffusers_version")]
    _diffusers_version: IgnoredAny,
    #[serde(default, rename = "_name_or_path")]
    _name_or_path: IgnoredAny,
    #[serde(default, rename = "clip_sample")]
    _clip_sample: IgnoredAny,
    #[serde(default, rename = "clip_sample_range")]
    _clip_sample_range: IgnoredAny,
    #[serde(default, rename = "sample_max_value")]
    _sample_max_value: IgnoredAny,
}

/// Growth of the betas, the variance that each timestep adds, from `beta_start` to `beta_end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Linear in the square root.
    #[default]
    ScaledLinear,
    /// A cosine, which ignores start and end.
    SquaredcosCapV2,
}

/// Quantity that the network predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Prediction {
    /// The noise.
    #[default]
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The clean sample.
    #[serde(rename = "sample")]
    Sample,
    /// v = sqrt(a) noise - sqrt(1 - a) clean.  arXiv:2202.00512
    #[serde(rename = "v_prediction")]
    Velocity,
}

/// Spacing of the visited timesteps.  Table 2 of arXiv:2305.08891
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Evenly from the first timestep to the last, both included.
    Linspace,
    /// Whole steps from the first timestep on.
    #[default]
    Leading,
    /// Whole steps down from the last timestep.
    Trailing,
}

impl Config {
    /// Rejects values that parse but make no sense.
    pub fn check(&self) -> anyhow::Result<()> {
        let steps = self.num_train_timesteps;
        check_train_timesteps(steps)?;
        for (key, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            ensure!(
                beta > 0.0 && beta < 1.0,
                "{key}: must be above 0 and below 1, got {beta}"
            );
        }
        if let Some(betas) = &self.trained_betas {
            ensure!(
                betas.len() == steps,
                "trained_betas: {} values for {steps} num_train_timesteps",
                betas.len()
            );
            let wrong = betas.iter().find(|beta| !(**beta > 0.0 && **beta < 1.0));
            ensure!(
                wrong.is_none(),
                "trained_betas: all must be above 0 and below 1, got {wrong:?}"
            );
        }
        ensure!(
            self.snr_shift_scale > 0.0 && self.snr_shift_scale.is_finite(),
            "snr_shift_scale: must be above 0, got {}",
            self.snr_shift_scale
        );
        ensure!(
            !self.rescale_betas_zero_snr || steps > 1,
            "rescale_betas_zero_snr: needs more than one of num_train_timesteps"
        );
        Ok(())
    }
}

fn beta_start() -> f64 {
    0.00085
}

fn beta_end() -> f64 {
    0.012
}

fn three() -> f64 {
    3.0
}
