//! Configuration of `FlowMatchEulerDiscreteScheduler`: the spacing of sigmas.

use serde::{Deserialize, Serialize};

use super::{UNSUPPORTED, flow_rules};
use crate::diffusers_config;

/// Settings, with the defaults of the class.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Timestep = sigma times this.
    pub num_train_timesteps: usize,
    /// sigma <- shift sigma / (1 + (shift - 1) sigma), unless the shift is dynamic.
    pub shift: f64,
    /// True if longer sequences are shifted more.
    pub use_dynamic_shifting: bool,
    /// The shift mu at `base_image_seq_len`.
    pub base_shift: f64,
    /// The shift mu at `max_image_seq_len`.
    pub max_shift: f64,
    /// Tokens of a clip at which `base_shift` applies.
    pub base_image_seq_len: usize,
    /// Tokens of a clip at which `max_shift` applies.
    pub max_image_seq_len: usize,
    /// Use of mu in a dynamic shift.
    pub time_shift_type: TimeShift,
    /// Last sigma, by stretching.
    pub shift_terminal: Option<f64>,
    /// True for sigmas spaced as in arXiv:2206.00364 between the first and the last, with rho = 7.
    pub use_karras_sigmas: bool,
    /// True for sigmas spaced evenly in their logarithm between the first and the last.
    pub use_exponential_sigmas: bool,
    /// sigma <- 1 - sigma: for networks whose time runs from noise to sample.
    pub invert_sigmas: bool,
    /// True if every step goes to the clean sample and back to fresh noise.
    pub stochastic_sampling: bool,
}

/// `time_shift_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeShift {
    /// sigma <- e^mu / (e^mu + 1 / sigma - 1)
    #[default]
    Exponential,
    /// sigma <- mu / (mu + 1 / sigma - 1)
    Linear,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: TimeShift::default(),
            shift_terminal: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            invert_sigmas: false,
            stochastic_sampling: false,
        }
    }
}

impl diffusers_config::Config for Config {
    const CLASS: &str = "FlowMatchEulerDiscreteScheduler";
    const FIXED: &[(&str, &str, &str)] = &[("use_beta_sigmas", "false", UNSUPPORTED)];

    fn check(&self) -> Vec<String> {
        let either = |one: bool, other: bool| !(one && other);
        let dynamic = |right: bool| right || !self.use_dynamic_shifting;
        flow_rules(self, ("shift", self.shift), self.shift_terminal)
            .must(
                "use_karras_sigmas",
                either(self.use_karras_sigmas, self.use_exponential_sigmas),
                "false with use_exponential_sigmas, or the other way round",
            )
            .must(
                "invert_sigmas",
                either(self.invert_sigmas, self.stochastic_sampling),
                "false with stochastic_sampling, or the other way round",
            )
            .must(
                "base_image_seq_len",
                dynamic(self.base_image_seq_len != self.max_image_seq_len),
                "other than max_image_seq_len",
            )
            .must("base_shift", dynamic(self.base_shift.is_finite()), "a number")
            .must("max_shift", dynamic(self.max_shift.is_finite()), "a number")
            .wrong()
    }
}

impl Config {
    /// Returns the dynamic shift mu for a sequence of this many tokens: `calculate_shift` of the LTX pipelines.
    pub fn mu(&self, seq_len: usize) -> f64 {
        let (base, max) = (self.base_image_seq_len as f64, self.max_image_seq_len as f64);
        let slope = (self.max_shift - self.base_shift) / (max - base);
        seq_len as f64 * slope + (self.base_shift - slope * base)
    }
}
