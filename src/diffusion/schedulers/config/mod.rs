//! Configuration of schedulers: `scheduler/scheduler_config.json` of a diffusers directory, parsed by the class it
//! names.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::magic;

pub mod ddpm;
pub mod flow_match_euler;
pub mod unipc;

pub use ddpm::{BetaSchedule, Prediction, Spacing};

/// Upper limit for a config file.
const MAX_BYTES: u64 = 1 << 20;

/// Upper limit for a schedule.
const MAX_TIMESTEPS: usize = 1_000_000;

/// Settings of a scheduler, by `_class_name`.
#[derive(Debug, Clone)]
pub enum Config {
    /// `CogVideoXDDIMScheduler`
    Ddim(ddpm::Config),
    /// `CogVideoXDPMScheduler`, with the same settings: a run may replace either by the other.
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

/// Class name, which is read first.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "_class_name")]
    class: Class,
}

impl Config {
    /// Reads `scheduler_config.json` in `folder`.
    ///
    /// # Errors
    /// Names the file and key: a missing file, an unknown class, key or value, or a setting that makes no sense.
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

    /// Parses the text of a `scheduler_config.json`.
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

    /// Rejects values that parse but make no sense.
    pub fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::Ddim(config) | Self::Dpm(config) => config.check(),
            Self::FlowMatchEuler(config) => config.check(),
            Self::UniPc(config) => config.check(),
        }
    }

    /// Returns `_class_name`.
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

/// Checks the number of training timesteps against the limit of a list of them.
fn check_train_timesteps(steps: usize) -> anyhow::Result<()> {
    anyhow::ensure!(
        (1..=MAX_TIMESTEPS).contains(&steps),
        "num_train_timesteps: must be within 1 and {MAX_TIMESTEPS}, got {steps}"
    );
    Ok(())
}

/// Checks a factor that shifts sigmas.
fn check_shift(key: &str, shift: f64) -> anyhow::Result<()> {
    anyhow::ensure!(shift > 0.0 && shift.is_finite(), "{key}: must be above 0, got {shift}");
    Ok(())
}

/// Checks the last sigma after stretching.
fn check_terminal(terminal: Option<f64>) -> anyhow::Result<()> {
    let terminal = terminal.unwrap_or_default();
    anyhow::ensure!(
        (0.0..1.0).contains(&terminal),
        "shift_terminal: must be at least 0 and below 1, got {terminal}"
    );
    Ok(())
}

/// Rejects a setting that only other pipelines use.
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
