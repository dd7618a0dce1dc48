//! Learning rate schedules; equal to `diffusers.optimization.get_scheduler`.
//!
//! With w warm-up steps of T, the rate of step t (from 0) is base_lr t/w before w, and from there on, with s = (t - w)
//! / (T - w) going from 0 to 1:
//!
//! | name | factor |
//! | --- | --- |
//! | `constant` | 1, without warm-up |
//! | `constant_with_warmup` | 1 |
//! | `linear` | 1 - s |
//! | `cosine` | (1 + cos(pi s)) / 2 |
//! | `cosine_with_restarts` | (1 + cos(pi (num_cycles s mod 1))) / 2 |
//! | `polynomial` | (1 - s)^power, between base_lr and 1e-7 |

use std::f64::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problems::Problems;

/// `lr_scheduler:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Schedule.
    pub name: Name,
    /// Steps over which the rate climbs from 0, in all schedules but `constant`.
    pub warmup_steps: usize,
    /// The warm-up as a share of all steps, rounded down, in place of `warmup_steps`: 0.1 is a tenth of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// Number of times that `cosine_with_restarts` falls from the top. (`cosine` falls once.)
    pub num_cycles: usize,
    /// Exponent of `polynomial`.
    pub power: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: Name::ConstantWithWarmup,
            warmup_steps: 100,
            warmup_ratio: None,
            num_cycles: 1,
            power: 1.0,
        }
    }
}

impl Config {
    /// Checks for values that parse but make no sense, by path below `lr_scheduler`.
    pub fn check(&self, problems: &mut Problems) {
        if let Some(ratio) = self.warmup_ratio.filter(|ratio| !(0.0..1.0).contains(ratio)) {
            let message = format!("must be at least 0 and below 1, or null for warmup_steps, got {ratio}");
            problems.push("warmup_ratio", message);
        }
        problems.at_least_one("num_cycles", self.num_cycles);
        if self.num_cycles > 1 && self.name == Name::Cosine {
            let message = format!(
                "cosine falls once and would ignore {}; name: cosine_with_restarts has cycles",
                self.num_cycles
            );
            problems.push("num_cycles", message);
        }
        problems.above_zero("power", self.power);
    }

    /// Returns the warm-up steps of a run of `total_steps`.
    fn warmup(&self, total_steps: usize) -> usize {
        self.warmup_ratio
            .map_or(self.warmup_steps, |ratio| (ratio * total_steps as f64) as usize)
    }

    /// Returns the learning rate of `step`, counted from 0, in a run of `total_steps`.
    ///
    /// After the last step it continues as in diffusers: `linear` stays at 0, `cosine` rises again.
    pub fn at(&self, base_lr: f64, step: usize, total_steps: usize) -> f64 {
        let warmup_steps = self.warmup(total_steps);
        let (t, total, warmup) = (step as f64, total_steps as f64, warmup_steps as f64);
        if self.name == Name::Constant {
            return base_lr;
        }
        if step < warmup_steps {
            return base_lr * t / warmup;
        }
        let span = (total - warmup).max(1.0);
        let progress = (t - warmup) / span;
        match self.name {
            Name::Constant | Name::ConstantWithWarmup => base_lr,
            Name::Linear => base_lr * ((total - t) / span).max(0.0),
            Name::Cosine => base_lr * half_wave(progress),
            Name::CosineWithRestarts if progress >= 1.0 => 0.0,
            Name::CosineWithRestarts => base_lr * half_wave((self.num_cycles as f64 * progress).fract()),
            Name::Polynomial => {
                let end = LAST_LR.min(base_lr); // a base rate below it stays constant
                if step > total_steps {
                    return end;
                }
                (base_lr - end) * (1.0 - progress).powf(self.power) + end
            }
        }
    }
}

/// Final rate of `polynomial`.
const LAST_LR: f64 = 1e-7;

/// Falls from 1 at 0 to 0 at 1.
fn half_wave(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}

/// Schedules, named as in diffusers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// `optimizer.lr`, without warm-up.
    Constant,
    /// Warm-up, then `optimizer.lr`.
    ConstantWithWarmup,
    /// Warm-up, then a straight line to 0.
    Linear,
    /// Warm-up, then half a cosine to 0.
    Cosine,
    /// Warm-up, then `num_cycles` half cosines, each from the top to 0.
    CosineWithRestarts,
    /// Warm-up, then `(1 - s)^power` down to 1e-7.
    Polynomial,
}
