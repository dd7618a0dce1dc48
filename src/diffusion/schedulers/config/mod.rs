//! `scheduler/scheduler_config.json` of a diffusers directory, read by the class that it names.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::magic;

pub mod ddpm;
pub mod flow_match_euler;
pub mod unipc;

pub use ddpm::{BetaSchedule, Prediction, Spacing};

/// No config is larger.
const MAX_BYTES: u64 = 1 << 20;

/// The settings of a scheduler, by `_class_name`.
#[derive(Debug, Clone)]
pub enum Config {
    /// `CogVideoXDDIMScheduler`
    Ddim(ddpm::Config),
    /// `CogVideoXDPMScheduler`, with the settings of the other: a run may put either in the checkpoint's place.
    Dpm(ddpm::Config),
    /// `FlowMatchEulerDiscreteScheduler`
    FlowMatchEuler(flow_match_euler::Config),
    /// `UniPCMultistepScheduler`
    UniPc(unipc::Config),
}

/// `_class_name`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Class {
    #[serde(rename = "CogVideoXDDIMScheduler")]
    Ddim,
    #[serde(rename = "CogVideoXDPMScheduler")]
    Dpm,
    #[serde(rename = "FlowMatchEulerDiscreteScheduler")]
    FlowMatchEuler,
    #[serde(rename = "UniPCMultistepScheduler")]
    UniPc,
}

/// What is read first.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "_class_name")]
    class: Class,
}

impl Config {
    /// Reads `scheduler_config.json` in `folder`.
    ///
    /// # Errors
    /// No such file, an unknown class, key or value, a setting that makes no sense: by file and key.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("scheduler_config.json");
        let read = || {
            let size = std::fs::metadata(&path)?.len();
            ensure!(size <= MAX_BYTES, "{size} bytes are too many for a config");
            magic::refuse(&path)?;
            Self::parse(&std::fs::read_to_string(&path)?)
        };
        read().with_context(|| path.display().to_string())
    }

    /// The settings that the text of a `scheduler_config.json` holds.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let named: Named = strictly(text)?;
        let config = match named.class {
            Class::Ddim => Self::Ddim(strictly(text)?),
            Class::Dpm => Self::Dpm(strictly(text)?),
            Class::FlowMatchEuler => Self::FlowMatchEuler(strictly(text)?),
            Class::UniPc => Self::UniPc(strictly(text)?),
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses values that parse but make no sense.
    pub fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::Ddim(config) | Self::Dpm(config) => config.check(),
            Self::FlowMatchEuler(config) => config.check(),
            Self::UniPc(config) => config.check(),
        }
    }

    /// `_class_name`
    pub fn class_name(&self) -> &'static str {
        match self {
            Self::Ddim(_) => "CogVideoXDDIMScheduler",
            Self::Dpm(_) => "CogVideoXDPMScheduler",
            Self::FlowMatchEuler(_) => "FlowMatchEulerDiscreteScheduler",
            Self::UniPc(_) => "UniPCMultistepScheduler",
        }
    }
}

fn strictly<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    Ok(serde_path_to_error::deserialize(
        &mut serde_json::Deserializer::from_str(text),
    )?)
}

/// Timesteps of training, kept within what a list of them may hold.
fn check_train_timesteps(steps: usize) -> anyhow::Result<()> {
    anyhow::ensure!(
        (1..=1_000_000).contains(&steps),
        "num_train_timesteps: must be within 1 and 1000000, got {steps}"
    );
    Ok(())
}

/// A factor that shifts sigmas.
fn check_shift(key: &str, shift: f64) -> anyhow::Result<()> {
    anyhow::ensure!(shift > 0.0 && shift.is_finite(), "{key}: must be above 0, got {shift}");
    Ok(())
}

/// Where the last of the sigmas is stretched to.
fn check_terminal(terminal: Option<f64>) -> anyhow::Result<()> {
    let terminal = terminal.unwrap_or_default();
    anyhow::ensure!(
        (0.0..1.0).contains(&terminal),
        "shift_terminal: must be at least 0 and below 1, got {terminal}"
    );
    Ok(())
}

/// A setting that other pipelines use, and none of ours.
fn refuse(key: &str, set: bool, instead: &str) -> anyhow::Result<()> {
    anyhow::ensure!(!set, "{key}: is not supported; {instead}");
    Ok(())
}

fn thousand() -> usize {
    1000
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}
