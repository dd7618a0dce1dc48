//! Settings of the optimiser.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problems::Problems;

/// `optimizer:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Optimiser.
    pub name: Name,
    /// Learning rate at the top of the schedule.
    pub lr: f64,
    /// Decay of the gradient's running average.
    pub beta1: f64,
    /// Decay of the squared gradient's running average.
    pub beta2: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Number added to the root of the second moment.
    pub epsilon: f64,
    /// Decay of an exponential moving average of the adapters (0.999, say), which the final adapter file then holds.
    pub ema: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: Name::Adamw,
            lr: 3e-5,
            beta1: 0.9,
            beta2: 0.95,
            weight_decay: 1e-4,
            epsilon: 1e-8,
            ema: None,
        }
    }
}

impl Config {
    /// Checks for values that parse but make no sense, by path below `optimizer`.
    pub fn check(&self, problems: &mut Problems) {
        problems.above_zero("lr", self.lr);
        problems.above_zero("epsilon", self.epsilon);
        problems.below_one("beta1", self.beta1);
        problems.below_one("beta2", self.beta2);
        if self.weight_decay < 0.0 {
            problems.push("weight_decay", format!("must be at least 0, got {}", self.weight_decay));
        }
        if let Some(decay) = self.ema {
            problems.below_one("ema", decay);
        }
    }
}

/// Optimisers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// Adam with decoupled weight decay (arXiv:1711.05101).
    #[default]
    Adamw,
    /// The same with its moments in 8 bits a number, block by block, as bitsandbytes has them (arXiv:2110.02861): a quarter
    /// of their memory, and somewhat coarser steps.
    Adamw8bit,
}

impl Name {
    /// Returns the name, as in a run file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Adamw8bit => "adamw8bit",
        }
    }
}
