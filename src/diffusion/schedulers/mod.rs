//! From noise to a sample in a few steps: the schedulers of diffusers, by `scheduler/scheduler_config.json`.
//!
//! `config` reads the file. With a table of noise: `alphas` tabulates it, `process` adds it, `spacing` picks timesteps,
//! `ddim` and `dpm` take a step each. With flow matching: `sigmas` says where steps stand, `euler` and `unipc` take them.
//! `run` walks them all.

use std::path::Path;

use anyhow::{Context, bail};
use candle_core::Tensor;

pub mod alphas;
pub mod config;
pub mod ddim;
pub mod dpm;
pub mod euler;
pub mod process;
pub mod run;
pub mod sigmas;
pub mod spacing;
pub mod unipc;

pub use config::Config;
pub use process::Process;
pub use run::Run;

use run::Solver;

/// The scheduler of a checkpoint.
#[derive(Debug, Clone)]
pub enum Scheduler {
    /// `CogVideoXDDIMScheduler`
    Ddim(Process),
    /// `CogVideoXDPMScheduler`
    Dpm(Process),
    /// `FlowMatchEulerDiscreteScheduler`
    FlowMatchEuler(config::flow_match_euler::Config),
    /// `UniPCMultistepScheduler`, of flow matching
    UniPc(config::unipc::Config),
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

    /// The scheduler with these settings.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        config.check()?;
        Ok(match config {
            Config::Ddim(config) => Self::Ddim(Process::new(config)?),
            Config::Dpm(config) => Self::Dpm(Process::new(config)?),
            Config::FlowMatchEuler(config) => Self::FlowMatchEuler(config),
            Config::UniPc(config) => Self::UniPc(config),
        })
    }

    /// The table of noise behind it: `add_noise` and `velocity` for training.
    ///
    /// # Errors
    /// The scheduler has none: it is one of flow matching.
    pub fn process(&self) -> anyhow::Result<&Process> {
        match self {
            Self::Ddim(process) | Self::Dpm(process) => Ok(process),
            Self::FlowMatchEuler(_) | Self::UniPc(_) => bail!(
                "scheduler_config.json: _class_name: a scheduler of flow matching, and this model needs \
                 CogVideoXDDIMScheduler or CogVideoXDPMScheduler"
            ),
        }
    }

    /// Timesteps of training; those of flow matching are sigma times this.
    pub fn num_train_timesteps(&self) -> usize {
        match self {
            Self::Ddim(process) | Self::Dpm(process) => process.config.num_train_timesteps,
            Self::FlowMatchEuler(config) => config.num_train_timesteps,
            Self::UniPc(config) => config.num_train_timesteps,
        }
    }

    /// A run of `num_steps` from pure noise.
    ///
    /// `seq_len` is the clip's in tokens, for families whose pipeline tells the scheduler (LTX does; CogVideoX and Wan do
    /// not); see `sigmas::euler`.
    ///
    /// # Errors
    /// More steps than there are timesteps, or none; a dynamic shift without `seq_len`.
    pub fn start(&self, num_steps: usize, seq_len: Option<usize>) -> anyhow::Result<Run<'_>> {
        let spaced = |process: &Process| spacing::timesteps(&process.config, num_steps);
        Ok(match self {
            Self::Ddim(process) => Run::tabled(Solver::Ddim(process), num_steps, spaced(process)?),
            Self::Dpm(process) => Run::tabled(Solver::Dpm(process, None), num_steps, spaced(process)?),
            Self::FlowMatchEuler(config) => Run::euler(config, sigmas::euler(config, num_steps, seq_len)?),
            Self::UniPc(config) => Run::unipc(config, sigmas::unipc(config, num_steps)?),
        })
    }

    /// The end of a run of `num_steps`, from a sample with the noise of its first timestep: video-to-video.
    ///
    /// # Errors
    /// As `start`, and a strength outside of 0..=1 or too small for a single step.
    pub fn start_from(&self, num_steps: usize, strength: f64, seq_len: Option<usize>) -> anyhow::Result<Run<'_>> {
        let run = self.start(num_steps, seq_len)?;
        Ok(run.skip(spacing::skipped(num_steps, strength)?))
    }

    /// What the network is given for `sample`: here the sample itself.
    pub fn scale_model_input(&self, sample: &Tensor, _timestep: f64) -> Tensor {
        sample.clone()
    }
}
