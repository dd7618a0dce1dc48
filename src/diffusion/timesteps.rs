//! Which timesteps training visits, and how much each counts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `diffusion:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How the position u in 0..1 is drawn. DDPM families always draw an integer timestep uniformly.
    pub timesteps: Timesteps,
    /// Mean of `logit_normal`.
    pub logit_mean: f64,
    /// Standard deviation of `logit_normal`.
    pub logit_std: f64,
    /// sigma = shift u / (1 + (shift - 1) u); above 1 visits high noise more often.
    pub shift: f64,
    /// Weight of each timestep's loss.
    pub weighting: Weighting,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            timesteps: Timesteps::Uniform,
            logit_mean: 0.0,
            logit_std: 1.0,
            shift: 1.0,
            weighting: Weighting::None,
        }
    }
}

impl Config {
    /// Values that parse but make no sense, by path below `diffusion`.
    pub fn check(&self) -> Vec<(String, String)> {
        [("logit_std", self.logit_std), ("shift", self.shift)]
            .into_iter()
            .filter(|(_, value)| *value <= 0.0)
            .map(|(key, value)| (key.to_string(), format!("must be above 0, got {value}")))
            .collect()
    }
}

/// Distribution of u.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Timesteps {
    Uniform,
    LogitNormal,
}

/// Weight of the loss by timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    None,
}
