//! From noise to a sample in a few steps: the schedulers of diffusers, by `scheduler/scheduler_config.json`.
//!
//! `config` reads the file. With a table of noise: `alphas` tabulates it, `process` adds it, `spacing` picks timesteps,
//! `ddim`, `dpm` and `euler_ancestral` take a step each. With flow matching: `sigmas` spaces the steps, `euler` and `unipc` take them.
//! `run` iterates over the steps of any of them.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use vtrain::diffusion::schedulers::{Config, Scheduler};
//!
//! let config = Config::parse(r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}"#)?;
//! let scheduler = Scheduler::new(config)?;
//!
//! let mut sample = Tensor::randn(0f32, 1f32, (1, 16, 3, 8, 8), &Device::Cpu)?; // (B, C, F, h, w)
//! let noise = sample.clone();
//! let mut run = scheduler.start(4, None)?;
//! while let Some(_timestep) = run.timestep() {
//!     let output = noise.clone(); // a network's prediction; in flow matching, noise - clean sample
//!     let mut drawn = None;
//!     for _ in 0..run.noise_draws()? {
//!         drawn = Some(sample.randn_like(0.0, 1.0)?);
//!     }
//!     sample = run.step(&output, &sample, drawn.as_ref())?.sample;
//! }
//! // This network predicts pure noise, so none is left.
//! assert!(sample.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
//! # assert_eq!(sample.dtype(), DType::F32);
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::path::Path;

use anyhow::{Context, bail};
use candle_core::Tensor;

pub mod alphas;
pub mod choice;
pub mod config;
pub mod ddim;
pub mod dpm;
pub mod euler;
pub mod euler_ancestral;
pub mod process;
pub mod run;
pub mod sigmas;
pub mod spacing;
pub mod unipc;

pub use choice::SchedulerName;
pub use config::Config;
pub use process::Process;
pub use run::Run;
pub use sigmas::{StepList, StepSpacing};

use run::Solver;

/// Scheduler of a checkpoint.
#[derive(Debug, Clone)]
pub enum Scheduler {
    /// `CogVideoXDDIMScheduler`
    Ddim(Process),
    /// `CogVideoXDPMScheduler`
    Dpm(Process),
    /// `EulerAncestralDiscreteScheduler`
    EulerAncestral(Process),
    /// `FlowMatchEulerDiscreteScheduler`
    FlowMatchEuler(config::flow_match_euler::Config),
    /// `UniPCMultistepScheduler` for flow matching
    UniPc(config::unipc::Config),
    /// `DPMSolverMultistepScheduler` for flow matching, of the second order; by choice alone ([`choice`])
    DpmSolver(config::unipc::Config),
}

/// Inputs of one step.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Output of the network, after guidance.
    pub output: &'a Tensor,
    /// Noisy sample.
    pub sample: &'a Tensor,
    /// Timestep of the sample.
    pub timestep: i64,
    /// Steps of the whole run, without those that video-to-video skips.
    pub num_steps: usize,
}

/// Result of one step, both in f32. The pipelines continue with `sample` in the type of the prompt embeddings.
#[derive(Debug, Clone)]
pub struct Stepped {
    /// Sample of the next timestep.
    pub sample: Tensor,
    /// Predicted clean sample.
    pub original: Tensor,
}

impl Scheduler {
    /// Reads `scheduler_config.json` in `folder`.
    ///
    /// # Errors
    /// Names the file and key: a missing file, an unknown key or value, or a setting that makes no sense.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        Self::new(Config::load(folder)?).with_context(|| folder.display().to_string())
    }

    /// Scheduler with these settings.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        config.check()?;
        Ok(match config {
            Config::Ddim(config) => Self::Ddim(Process::new(config)),
            Config::Dpm(config) => Self::Dpm(Process::new(config)),
            Config::EulerAncestral(config) => Self::EulerAncestral(Process::in_f32(config.table())),
            Config::FlowMatchEuler(config) => Self::FlowMatchEuler(config),
            Config::UniPc(config) => Self::UniPc(config),
        })
    }

    /// Returns its table of noise: `add_noise` and `velocity` for training.
    ///
    /// # Errors
    /// Fails for a flow matching scheduler, which has none.
    pub fn process(&self) -> anyhow::Result<&Process> {
        match self {
            Self::Ddim(process) | Self::Dpm(process) | Self::EulerAncestral(process) => Ok(process),
            Self::FlowMatchEuler(_) | Self::UniPc(_) | Self::DpmSolver(_) => {
                bail!("scheduler_config.json: _class_name: a scheduler of flow matching, which has no table of noise")
            }
        }
    }

    /// Returns the number of training timesteps; flow matching's timesteps are sigma times this.
    pub fn num_train_timesteps(&self) -> usize {
        match self {
            Self::Ddim(process) | Self::Dpm(process) | Self::EulerAncestral(process) => {
                process.config.num_train_timesteps
            }
            Self::FlowMatchEuler(config) => config.num_train_timesteps,
            Self::UniPc(config) | Self::DpmSolver(config) => config.num_train_timesteps,
        }
    }

    /// Starts a run of `num_steps` from pure noise.
    ///
    /// `seq_len` is the clip's length in tokens, for families whose pipeline passes it to the scheduler (LTX does;
    /// CogVideoX and Wan do not); see `sigmas::euler`.
    ///
    /// # Errors
    /// Fails for no steps, more steps than timesteps, and a dynamic shift without `seq_len`.
    pub fn start(&self, num_steps: usize, seq_len: Option<usize>) -> anyhow::Result<Run<'_>> {
        let spaced = |process: &Process| spacing::timesteps(&process.config, num_steps);
        Ok(match self {
            Self::Ddim(process) => Run::tabled(Solver::Ddim(process), num_steps, spaced(process)?),
            Self::Dpm(process) => Run::tabled(Solver::Dpm(process, None), num_steps, spaced(process)?),
            Self::EulerAncestral(process) => {
                Run::euler_ancestral(process, euler_ancestral::sigmas(process, num_steps)?)
            }
            Self::FlowMatchEuler(config) => Run::euler(config, sigmas::euler(config, num_steps, seq_len)?),
            Self::UniPc(config) => match seq_len {
                // A pipeline that passes the length passes even sigmas to any scheduler.
                Some(_) => Run::unipc(config, sigmas::unipc_given(config, &sigmas::even(num_steps))?),
                None => Run::unipc(config, sigmas::unipc(config, num_steps)?),
            },
            Self::DpmSolver(config) => Run::dpm_solver(config, sigmas::dpm_solver(config, num_steps)?),
        })
    }

    /// Starts a run of `num_steps` from pure noise, spaced as a pipeline does.
    ///
    /// # Errors
    /// Same as [`start`](Self::start); also for a spacing that the scheduler does not take.
    pub fn start_spaced(
        &self,
        spacing: StepSpacing,
        num_steps: usize,
        seq_len: Option<usize>,
    ) -> anyhow::Result<Run<'_>> {
        match spacing {
            StepSpacing::OfScheduler => self.start(num_steps, seq_len),
            StepSpacing::LinearQuadratic => {
                let sigmas = sigmas::linear_quadratic(num_steps, self.num_train_timesteps())?;
                self.start_with(&StepList::Sigmas(sigmas), seq_len)
            }
        }
    }

    /// Starts a run over these steps.
    ///
    /// # Errors
    /// Fails for steps that do not descend from noise to sample, and for a scheduler that spaces its steps itself.
    pub fn start_with(&self, steps: &StepList, seq_len: Option<usize>) -> anyhow::Result<Run<'_>> {
        match (self, steps) {
            (Self::FlowMatchEuler(config), StepList::Sigmas(given)) => {
                Ok(Run::euler(config, sigmas::given(config, given, seq_len)?))
            }
            (Self::FlowMatchEuler(config), StepList::Timesteps(_)) if config.invert_sigmas => {
                bail!("timesteps are for networks whose time runs from sample to noise; list sigmas instead")
            }
            (Self::FlowMatchEuler(config), StepList::Timesteps(given)) => Ok(Run::euler(
                config,
                sigmas::of_timesteps(given, config.num_train_timesteps)?,
            )),
            (Self::UniPc(config), StepList::Sigmas(given)) => {
                Ok(Run::unipc(config, sigmas::unipc_given(config, given)?))
            }
            (Self::UniPc(config), StepList::Timesteps(given)) => {
                Ok(Run::unipc(config, sigmas::unipc_timesteps(config, given)?))
            }
            (Self::DpmSolver(config), StepList::Sigmas(given)) => {
                Ok(Run::dpm_solver(config, sigmas::unipc_given(config, given)?))
            }
            (Self::DpmSolver(config), StepList::Timesteps(given)) => {
                Ok(Run::dpm_solver(config, sigmas::unipc_timesteps(config, given)?))
            }
            (Self::Ddim(_) | Self::Dpm(_) | Self::EulerAncestral(_), _) => {
                bail!("lists of steps are for schedulers of flow matching; leave them out")
            }
        }
    }
}
