//! Distribution of training timesteps, and the weight of each.
//!
//! Flow matching families use a sigma between the sample (0) and noise (1). A position u is drawn, and
//! sigma = k u / (1 + (k - 1) u) with the shift k, in f32 as torch computes it:
//! * `uniform`: u = rand;
//! * `logit_normal`: u = 1 / (1 + e^-(mean + std randn));
//! * `mode`: u = 1 - v - s (cos^2(pi v / 2) - 1 + v) with v = rand and the scale s.
//!
//! All are from arXiv:2403.03206, as in `compute_density_for_timestep_sampling` and `compute_loss_weighting_for_sd3` of
//! diffusers. Families with a table of noise (DDPM) draw its timesteps uniformly: they read none of these settings, but
//! `min_snr_gamma` and `noise_offset`, which flow matching does not read. Settings that would be ignored are rejected.

use std::f32::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problems::Problems;
use crate::rng::Rng;

/// `diffusion:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Distribution of the position u in 0..1. DDPM families always draw an integer timestep uniformly.
    pub timesteps: Density,
    /// Mean of `logit_normal`.
    pub logit_mean: f64,
    /// Standard deviation of `logit_normal`.
    pub logit_std: f64,
    /// Preference of `mode` for the middle (above 0) or the ends (below 0).
    pub mode_scale: f64,
    /// sigma = shift u / (1 + (shift - 1) u); above 1 visits high noise more often. `auto`: the shift of the
    /// checkpoint's scheduler in sampling, fixed or by the clip's size.
    pub shift: Shift,
    /// Weight of each timestep's loss.
    pub weighting: Weighting,
    /// Limit of the signal-to-noise ratio above which a timestep's loss weighs less (min-SNR, arXiv:2303.09556); 5 is usual.
    /// null: equal weights. For models with a table of noise (CogVideoX, Allegro).
    pub min_snr_gamma: Option<f64>,
    /// Deviation of a number that is added to all noise of a channel, so that a clip's brightness is learnt from noise as well.
    /// 0: none. For models with a table of noise.
    pub noise_offset: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            timesteps: Density::Uniform,
            logit_mean: 0.0,
            logit_std: 1.0,
            mode_scale: 1.29,
            shift: Shift::AUTO,
            weighting: Weighting::None,
            min_snr_gamma: None,
            noise_offset: 0.0,
        }
    }
}

/// Distribution of u.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Density {
    /// Evenly over 0..1.
    Uniform,
    /// The logistic function of a normal variate.
    LogitNormal,
    /// Mode sampling: `1 - u - mode_scale (cos^2(pi u / 2) - 1 + u)`.
    Mode,
}

/// Weight of the loss by timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// Equal weights.
    None,
    /// sigma^-2
    SigmaSqrt,
    /// 2 / (pi (1 - 2 sigma + 2 sigma^2))
    Cosmap,
}

/// k of the shift.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number, or auto")]
pub enum Shift {
    /// A fixed k.
    Fixed(f64),
    /// A named rule for k.
    Named(Named),
}

/// Shifts with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Named {
    /// The checkpoint's shift.
    Auto,
}

impl Shift {
    /// Shift of the checkpoint's scheduler.
    pub const AUTO: Self = Self::Named(Named::Auto);
}

impl Config {
    /// Checks for values that parse but make no sense, by path below `diffusion`.
    pub fn check(&self, problems: &mut Problems) {
        /// Range within which u stays in 0..1.
        const MODE_SCALES: std::ops::RangeInclusive<f64> = -1.0..=1.75;
        problems.above_zero("logit_std", self.logit_std);
        if !self.logit_mean.is_finite() {
            problems.push("logit_mean", format!("must be a number, got {}", self.logit_mean));
        }
        if !MODE_SCALES.contains(&self.mode_scale) {
            let message = format!("must be between -1 and 1.75, got {}", self.mode_scale);
            problems.push("mode_scale", message);
        }
        if let Shift::Fixed(shift) = self.shift {
            problems.above_zero("shift", shift);
        }
        if let Some(gamma) = self.min_snr_gamma.filter(|gamma| !(*gamma > 0.0 && gamma.is_finite())) {
            problems.push("min_snr_gamma", format!("must be above 0, or null, got {gamma}"));
        }
        if !(self.noise_offset >= 0.0 && self.noise_offset.is_finite()) {
            let message = format!("must be at least 0, got {}", self.noise_offset);
            problems.push("noise_offset", message);
        }
        for (key, by) in self.unread(self.timesteps) {
            problems.push(key, format!("is read with timesteps: {by} only; remove it"));
        }
    }

    /// Returns keys that were set but that this distribution ignores, with the distribution that reads them.
    fn unread(&self, density: Density) -> Vec<(&'static str, &'static str)> {
        let usual = Self::default();
        let keys = [
            (
                "logit_mean",
                self.logit_mean != usual.logit_mean,
                Density::LogitNormal,
                "logit_normal",
            ),
            (
                "logit_std",
                self.logit_std != usual.logit_std,
                Density::LogitNormal,
                "logit_normal",
            ),
            ("mode_scale", self.mode_scale != usual.mode_scale, Density::Mode, "mode"),
        ];
        let unread = keys.into_iter().filter(|(_, set, by, _)| *set && density != *by);
        unread.map(|(key, _, _, by)| (key, by)).collect()
    }

    /// Returns the set keys that a family with a table of noise ignores.
    pub fn beyond_ddpm(&self) -> Vec<&'static str> {
        let mut keys: Vec<&str> = self.unread(Density::Uniform).into_iter().map(|(key, _)| key).collect();
        if self.timesteps != Density::Uniform {
            keys.push("timesteps");
        }
        if !matches!(self.shift, Shift::Named(Named::Auto) | Shift::Fixed(1.0)) {
            keys.push("shift");
        }
        if self.weighting != Weighting::None {
            keys.push("weighting");
        }
        keys
    }

    /// Returns the set keys that flow matching ignores.
    pub fn beyond_flow(&self) -> Vec<&'static str> {
        let snr = self.min_snr_gamma.map(|_| "min_snr_gamma");
        let offset = (self.noise_offset != 0.0).then_some("noise_offset");
        [snr, offset].into_iter().flatten().collect()
    }
}

impl Density {
    /// Draws positions u of a batch: `rand(B)`, or `randn(B)` for `logit_normal`.
    pub fn draw(self, config: &Config, batch: usize, rng: &mut Rng) -> Vec<f32> {
        let (mean, std) = (config.logit_mean as f32, config.logit_std as f32);
        let scale = config.mode_scale as f32;
        match self {
            Self::Uniform => rng.rand(batch),
            Self::LogitNormal => {
                let sigmoid = |n: f32| 1.0 / (1.0 + (-(mean + std * n)).exp());
                rng.randn(batch).into_iter().map(sigmoid).collect()
            }
            Self::Mode => {
                let mode = |v: f32| {
                    let cos = (PI * v / 2.0).cos();
                    1.0 - v - scale * (cos * cos - 1.0 + v)
                };
                rng.rand(batch).into_iter().map(mode).collect()
            }
        }
    }
}

impl Weighting {
    /// Returns the weight of the squared error at this sigma.
    pub fn at(self, sigma: f32) -> f32 {
        match self {
            Self::None => 1.0,
            Self::SigmaSqrt => 1.0 / (sigma * sigma),
            Self::Cosmap => 2.0 / (PI * (1.0 - 2.0 * sigma + 2.0 * (sigma * sigma))),
        }
    }
}

/// k u / (1 + (k - 1) u)
pub fn shifted(u: f32, shift: f64) -> f32 {
    shift as f32 * u / (1.0 + (shift - 1.0) as f32 * u)
}
