//! AdamW: Adam with decoupled weight decay.  arXiv:1711.05101

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `optimizer:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub name: Name,
    /// Learning rate at the top of the schedule.
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    pub epsilon: f64,
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
        }
    }
}

impl Config {
    /// Values that parse but make no sense, by path below `optimizer`.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        for (key, value) in [("lr", self.lr), ("epsilon", self.epsilon)] {
            if value <= 0.0 {
                wrong.push((key.to_string(), format!("must be above 0, got {value}")));
            }
        }
        for (key, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                wrong.push((key.to_string(), format!("must be at least 0 and below 1, got {value}")));
            }
        }
        if self.weight_decay < 0.0 {
            wrong.push((
                "weight_decay".into(),
                format!("must be at least 0, got {}", self.weight_decay),
            ));
        }
        wrong
    }
}

/// The optimisers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    Adamw,
}
