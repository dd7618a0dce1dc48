//! Configuration of schedulers: `scheduler/scheduler_config.json` of a diffusers directory, parsed by the class it
//! names.

use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::diffusers_config::{self, Config as _, Rules};

pub mod ddpm;
pub mod euler_ancestral;
pub mod flow_match_euler;
pub mod unipc;

pub use ddpm::{BetaSchedule, Prediction, Spacing};

/// Sizes of a schedule.
const TIMESTEPS: RangeInclusive<usize> = 1..=1_000_000;

/// Reason for values that only other pipelines use.
const UNSUPPORTED: &str = "others are not supported";

/// Keys of the classes that a config of this one may have been made from, which it ignores.
const KARRAS_KEYS: &[&str] = &[
    "clip_sample",
    "clip_sample_range",
    "set_alpha_to_one",
    "skip_prk_steps",
    "sample_max_value",
    "thresholding",
    "dynamic_thresholding_ratio",
    "interpolation_type",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "sigma_min",
    "sigma_max",
    "timestep_type",
    "final_sigmas_type",
];

const DDIM: &str = "CogVideoXDDIMScheduler";
const DPM: &str = "CogVideoXDPMScheduler";

/// Settings of a scheduler, by `_class_name`.
#[derive(Debug, Clone)]
pub enum Config {
    /// `CogVideoXDDIMScheduler`
    Ddim(ddpm::Config),
    /// `CogVideoXDPMScheduler`, with the same settings: a run may replace either by the other.
    Dpm(ddpm::Config),
    /// `EulerAncestralDiscreteScheduler`
    EulerAncestral(euler_ancestral::Config),
    /// `FlowMatchEulerDiscreteScheduler`
    FlowMatchEuler(flow_match_euler::Config),
    /// `UniPCMultistepScheduler`
    UniPc(unipc::Config),
}

impl Config {
    /// Reads `scheduler_config.json` in `folder`.
    ///
    /// # Errors
    /// Names the file and key: a missing file, an unknown class, key or value, or a setting that makes no sense.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("scheduler_config.json");
        diffusers_config::text(&path)
            .and_then(|text| Self::parse(&text))
            .with_context(|| path.display().to_string())
    }

    /// Parses the text of a `scheduler_config.json`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        const ANCESTRAL: &str = euler_ancestral::Config::CLASS;
        const EULER: &str = flow_match_euler::Config::CLASS;
        const UNIPC: &str = unipc::Config::CLASS;
        let mut keys = diffusers_config::keys(text)?;
        let class = keys.remove("_class_name").unwrap_or_default();
        Ok(match class.as_str() {
            Some(DDIM) => Self::Ddim(ddpm::Config::from_keys(keys)?),
            Some(DPM) => Self::Dpm(ddpm::Config::from_keys(keys)?),
            Some(ANCESTRAL) => Self::EulerAncestral(euler_ancestral::Config::from_keys(keys)?),
            Some(EULER) => Self::FlowMatchEuler(flow_match_euler::Config::from_keys(keys)?),
            Some(UNIPC) => Self::UniPc(unipc::Config::from_keys(keys)?),
            _ => bail!("_class_name must be {DDIM}, {DPM}, {ANCESTRAL}, {EULER} or {UNIPC}, found {class}"),
        })
    }

    /// Rejects values that parse but make no sense.
    pub fn check(&self) -> anyhow::Result<()> {
        let wrong = match self {
            Self::Ddim(config) | Self::Dpm(config) => config.check(),
            Self::EulerAncestral(config) => config.check(),
            Self::FlowMatchEuler(config) => config.check(),
            Self::UniPc(config) => config.check(),
        };
        ensure!(wrong.is_empty(), wrong.join("\n"));
        Ok(())
    }

    /// Returns `_class_name`.
    pub fn class_name(&self) -> &'static str {
        match self {
            Self::Ddim(_) => DDIM,
            Self::Dpm(_) => DPM,
            Self::EulerAncestral(_) => euler_ancestral::Config::CLASS,
            Self::FlowMatchEuler(_) => flow_match_euler::Config::CLASS,
            Self::UniPc(_) => unipc::Config::CLASS,
        }
    }
}

/// Rules of both schedulers of flow matching: the length of the schedule, the factor that shifts sigmas, the last sigma
/// after stretching.
fn flow_rules(config: &impl Serialize, (key, shift): (&str, f64), terminal: Option<f64>) -> Rules {
    Rules::of(config)
        .between(&["num_train_timesteps"], TIMESTEPS)
        .must(key, shift > 0.0 && shift.is_finite(), "a number above 0")
        .must(
            "shift_terminal",
            (0.0..1.0).contains(&terminal.unwrap_or_default()),
            "at least 0 and below 1",
        )
}
