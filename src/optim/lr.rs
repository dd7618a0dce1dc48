//! How the learning rate moves over a run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `lr_scheduler:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub name: Name,
    /// Steps over which the rate climbs from 0.
    pub warmup_steps: usize,
    /// Waves of the cosine schedules.
    pub num_cycles: usize,
    /// Exponent of `polynomial`.
    pub power: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: Name::ConstantWithWarmup,
            warmup_steps: 100,
            num_cycles: 1,
            power: 1.0,
        }
    }
}

impl Config {
    /// Values that parse but make no sense, by path below `lr_scheduler`.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        if self.num_cycles == 0 {
            wrong.push(("num_cycles".into(), "must be at least 1, got 0".into()));
        }
        if self.power <= 0.0 {
            wrong.push(("power".into(), format!("must be above 0, got {}", self.power)));
        }
        wrong
    }
}

/// The schedules, named as diffusers names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    Constant,
    ConstantWithWarmup,
    Linear,
    Cosine,
    CosineWithRestarts,
    Polynomial,
}
