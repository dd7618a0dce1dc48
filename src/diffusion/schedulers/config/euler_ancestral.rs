//! Configuration of `EulerAncestralDiscreteScheduler`: a table of noise, in f32.

use serde::{Deserialize, Serialize};

use super::ddpm::{self, BetaSchedule, Prediction, Spacing};
use super::{KARRAS_KEYS, UNSUPPORTED};
use crate::diffusers_config::{self, Rules};

/// Settings, with the defaults of the class.
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
    /// Added to timesteps spaced as `leading`.
    pub steps_offset: usize,
    /// Quantity that the network predicts: the noise or a velocity.
    pub prediction_type: Prediction,
    /// Spacing of the timesteps visited in sampling.
    pub timestep_spacing: Spacing,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            steps_offset: 0,
            prediction_type: Prediction::Epsilon,
            timestep_spacing: Spacing::Linspace,
        }
    }
}

impl Config {
    /// Returns the same as settings of a table of noise.
    pub fn table(&self) -> ddpm::Config {
        ddpm::Config {
            num_train_timesteps: self.num_train_timesteps,
            beta_start: self.beta_start,
            beta_end: self.beta_end,
            beta_schedule: self.beta_schedule,
            trained_betas: self.trained_betas.clone(),
            set_alpha_to_one: true,
            steps_offset: self.steps_offset,
            prediction_type: self.prediction_type,
            timestep_spacing: self.timestep_spacing,
            rescale_betas_zero_snr: false,
            snr_shift_scale: 1.0,
        }
    }
}

impl diffusers_config::Config for Config {
    const CLASS: &str = "EulerAncestralDiscreteScheduler";
    const UNUSED: &[&str] = KARRAS_KEYS;
    const FIXED: &[(&str, &str, &str)] = &[("rescale_betas_zero_snr", "false", UNSUPPORTED)];

    fn check(&self) -> Vec<String> {
        let mut wrong = diffusers_config::Config::check(&self.table());
        let predicts = self.prediction_type != Prediction::Sample;
        let rules = Rules::of(self).must("prediction_type", predicts, "epsilon or v_prediction");
        wrong.extend(rules.wrong());
        wrong
    }
}
