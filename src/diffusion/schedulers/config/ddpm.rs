//! Configuration of `CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler`: a table of noise by timestep.

use serde::{Deserialize, Serialize};

use super::{DDIM, TIMESTEPS};
use crate::diffusers_config::{self, Rules};

/// Settings of both CogVideoX schedulers, with the defaults of their classes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Number of timesteps of the forward process.
    pub num_train_timesteps: usize,
    /// Variance added by the first timestep.
    pub beta_start: f64,
    /// Variance added by the last timestep.
    pub beta_end: f64,
    /// Growth of the variance in between.
    pub beta_schedule: BetaSchedule,
    /// Explicit list of betas, which replaces a schedule.
    pub trained_betas: Option<Vec<f64>>,
    /// True if no noise is left after timestep 0; false for as much as at timestep 0.
    pub set_alpha_to_one: bool,
    /// Added to timesteps spaced as `leading`.
    pub steps_offset: usize,
    /// Quantity that the network predicts.
    pub prediction_type: Prediction,
    /// Spacing of the timesteps visited in sampling.
    pub timestep_spacing: Spacing,
    /// True if the last timestep is pure noise.
    pub rescale_betas_zero_snr: bool,
    /// Above 1 adds noise: the signal-to-noise ratio is divided by it.
    pub snr_shift_scale: f64,
}

/// Growth of the betas, the variance that each timestep adds, from `beta_start` to `beta_end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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

impl Default for Config {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::default(),
            trained_betas: None,
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: Prediction::default(),
            timestep_spacing: Spacing::default(),
            rescale_betas_zero_snr: false,
            snr_shift_scale: 3.0,
        }
    }
}

impl diffusers_config::Config for Config {
    /// The other class has the same settings.
    const CLASS: &str = DDIM;
    const UNUSED: &[&str] = &["clip_sample", "clip_sample_range", "sample_max_value"];

    fn check(&self) -> Vec<String> {
        let within = |beta: f64| beta > 0.0 && beta < 1.0;
        let (steps, betas) = (
            self.num_train_timesteps,
            self.trained_betas.as_deref().unwrap_or_default(),
        );
        let (below_one, scale) = ("above 0 and below 1", self.snr_shift_scale);
        Rules::of(self)
            .between(&["num_train_timesteps"], TIMESTEPS)
            .must("beta_start", within(self.beta_start), below_one)
            .must("beta_end", within(self.beta_end), below_one)
            .holds(self.trained_betas.is_none() || betas.len() == steps, || {
                format!(
                    "trained_betas must have {steps} entries, one of each of num_train_timesteps, found {}",
                    betas.len()
                )
            })
            .all(betas, |beta| {
                (!within(*beta)).then(|| format!("trained_betas must be {below_one}, found {beta}"))
            })
            .must("snr_shift_scale", scale > 0.0 && scale.is_finite(), "a number above 0")
            .holds(!self.rescale_betas_zero_snr || steps > 1, || {
                "rescale_betas_zero_snr needs more than one of num_train_timesteps".into()
            })
            .wrong()
    }
}
