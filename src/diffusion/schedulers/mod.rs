//! From noise to a sample in a few steps: the schedulers of diffusers, by `scheduler/scheduler_config.json`.
//!
//! `config` reads the file, `alphas` tabulates the noise, `process` adds it, `spacing` picks timesteps, `ddim` and `dpm`
//! take a step each, `run` walks them all.

use std::path::Path;

use anyhow::Context;
use candle_core::Tensor;

pub mod alphas;
pub mod config;
pub mod ddim;
pub mod dpm;
pub mod process;
pub mod run;
pub mod spacing;

pub use config::{Class, Config};
pub use process::Process;
pub use run::Run;

/// The scheduler of a checkpoint.
#[derive(Debug, Clone)]
pub enum Scheduler {
    /// `CogVideoXDDIMScheduler`
    Ddim(Process),
    /// `CogVideoXDPMScheduler`
    Dpm(Process),
}

/// What one step starts from.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The network's, after guidance.
    pub output: &'a Tensor,
    pub sample: &'a Tensor,
    pub timestep: i64,
    /// Of the whole run, with what video-to-video leaves out.
    pub num_steps: usize,
}

/// What one step arrives at, both in f32. The pipelines go on with `sample` in the type of the prompt embeddings.
#[derive(Debug, Clone)]
pub struct Stepped {
    pub sample: Tensor,
    /// The clean sample that the network believes in.
    pub original: Tensor,
}

impl Scheduler {
    /// Reads `scheduler_config.json` in `folder`.
    ///
    /// # Errors
    /// No such file, an unknown key or value, a setting that makes no sense: by file and key.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        Self::new(Config::load(folder)?).with_context(|| folder.display().to_string())
    }

    /// The scheduler that `config.class` names.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let class = config.class;
        let process = Process::new(config)?;
        Ok(match class {
            Class::Ddim => Self::Ddim(process),
            Class::Dpm => Self::Dpm(process),
        })
    }

    /// The noise behind it: `add_noise` and `velocity` for training.
    pub fn process(&self) -> &Process {
        match self {
            Self::Ddim(process) | Self::Dpm(process) => process,
        }
    }

    /// A run of `num_steps` from pure noise.
    ///
    /// # Errors
    /// More steps than there are timesteps, or none.
    pub fn start(&self, num_steps: usize) -> anyhow::Result<Run<'_>> {
        let timesteps = spacing::timesteps(&self.process().config, num_steps)?;
        Ok(Run::new(self, num_steps, timesteps, 0))
    }

    /// The end of a run of `num_steps`, from a sample with the noise of its first timestep: video-to-video.
    ///
    /// # Errors
    /// As `start`, and a strength outside of 0..=1 or too small for a single step.
    pub fn start_from(&self, num_steps: usize, strength: f64) -> anyhow::Result<Run<'_>> {
        let timesteps = spacing::timesteps(&self.process().config, num_steps)?;
        let skipped = spacing::skipped(num_steps, strength)?;
        Ok(Run::new(self, num_steps, timesteps, skipped))
    }

    /// What the network is given for `sample`: here the sample itself.
    pub fn scale_model_input(&self, sample: &Tensor, _timestep: i64) -> Tensor {
        sample.clone()
    }

    /// Standard deviation of the noise that a run starts from.
    pub fn init_noise_sigma(&self) -> f64 {
        1.0
    }
}
