//! Configuration of `FlowMatchEulerDiscreteScheduler`: the spacing of sigmas.

use anyhow::ensure;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{check_shift, check_terminal, check_train_timesteps, one, refuse, thousand};

/// Settings, with the defaults of the class.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Timestep = sigma times this.
    #[serde(default = "thousand")]
    pub num_train_timesteps: usize,
    /// sigma <- shift sigma / (1 + (shift - 1) sigma), unless the shift is dynamic.
    #[serde(default = "one")]
    pub shift: f64,
    /// True if longer sequences are shifted more.
    #[serde(default)]
    pub use_dynamic_shifting: bool,
    /// The shift mu at `base_image_seq_len`.
    #[serde(default = "base_shift")]
    pub base_shift: f64,
    /// The shift mu at `max_image_seq_len`.
    #[serde(default = "max_shift")]
    pub max_shift: f64,
    /// Tokens of a clip at which `base_shift` applies.
    #[serde(default = "base_image_seq_len")]
    pub base_image_seq_len: usize,
    /// Tokens of a clip at which `max_shift` applies.
    #[serde(default = "max_image_seq_len")]
    pub max_image_seq_len: usize,
    /// Use of mu in a dynamic shift.
    #[serde(default)]
    pub time_shift_type: TimeShift,
    /// Last sigma, by stretching.
    #[serde(default)]
    pub shift_terminal: Option<f64>,
    /// True for sigmas spaced as in arXiv:2206.00364 between the first and the last, with rho = 7.
    #[serde(default)]
    pub use_karras_sigmas: bool,
    /// True for sigmas spaced evenly in their logarithm between the first and the last.
    #[serde(default)]
    pub use_exponential_sigmas: bool,
    #[serde(default)]
    use_beta_sigmas: bool,
    /// sigma <- 1 - sigma: for networks whose time runs from noise to sample.
    #[serde(default)]
    pub invert_sigmas: bool,
    /// True if every step goes to the clean sample and back to fresh noise.
    #[serde(default)]
    pub stochastic_sampling: bool,

    #[serde(default, rename = "_class_name")]
    _class_name: IgnoredAny,
    #[serde(default, rename = "_diffusers_version")]
    _diffusers_version: IgnoredAny,
    #[serde(default, rename = "_name_or_path")]
    _name_or_path: IgnoredAny,
}

/// `time_shift_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeShift {
    /// sigma <- e^mu / (e^mu + 1 / sigma - 1)
    #[default]
    Exponential,
    /// sigma <- mu / (mu + 1 / sigma - 1)
    Linear,
}

impl Config {
    /// Rejects values that parse but make no sense.
    pub fn check(&self) -> anyhow::Result<()> {
        check_train_timesteps(self.num_train_timesteps)?;
        check_shift("shift", self.shift)?;
        check_terminal(self.shift_terminal)?;
        refuse("use_beta_sigmas", self.use_beta_sigmas, "set it to false")?;
        ensure!(
            !(self.use_karras_sigmas && self.use_exponential_sigmas),
            "use_karras_sigmas: excludes use_exponential_sigmas; set one of them to false"
        );
        ensure!(
            !(self.invert_sigmas && self.stochastic_sampling),
            "invert_sigmas: excludes stochastic_sampling; set one of them to false"
        );
        if self.use_dynamic_shifting {
            ensure!(
                self.base_image_seq_len != self.max_image_seq_len,
                "base_image_seq_len: must differ from max_image_seq_len, both are {}",
                self.max_image_seq_len
            );
            for (key, shift) in [("base_shift", self.base_shift), ("max_shift", self.max_shift)] {
                ensure!(shift.is_finite(), "{key}: must be a number, got {shift}");
            }
        }
        Ok(())
    }

    /// Returns the dynamic shift mu for a sequence of this many tokens: `calculate_shift` of the LTX pipelines.
    pub fn mu(&self, seq_len: usize) -> f64 {
        let (base, max) = (self.base_image_seq_len as f64, self.max_image_seq_len as f64);
        let slope = (self.max_shift - self.base_shift) / (max - base);
        seq_len as f64 * slope + (self.base_shift - slope * base)
    }
}

fn base_shift() -> f64 {
    0.5
}

fn max_shift() -> f64 {
    1.15
}

fn base_image_seq_len() -> usize {
    256
}

fn max_image_seq_len() -> usize {
    4096
}
