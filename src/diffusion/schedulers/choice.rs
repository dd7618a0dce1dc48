//! Another scheduler in place of a checkpoint's own, with the settings of that: what `from_config` of diffusers' classes
//! does, but the shift of sigmas is kept, which is named otherwise there (`shift`, `flow_shift`).

use std::fmt;

use anyhow::{bail, ensure};

use super::Scheduler;
use super::config::{flow_match_euler, unipc};

/// Schedulers to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SchedulerName {
    /// `FlowMatchEulerDiscreteScheduler`
    Euler,
    /// `UniPCMultistepScheduler`
    #[value(name = "unipc")]
    UniPc,
    /// `DPMSolverMultistepScheduler` (flow matching)
    #[value(name = "dpm++")]
    DpmPlusPlus,
    /// `CogVideoXDDIMScheduler`
    Ddim,
    /// `CogVideoXDPMScheduler`
    Dpm,
}

impl fmt::Display for SchedulerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Euler => "euler",
            Self::UniPc => "unipc",
            Self::DpmPlusPlus => "dpm++",
            Self::Ddim => "ddim",
            Self::Dpm => "dpm",
        })
    }
}

impl Scheduler {
    /// Returns the scheduler of this name with the settings of this one.
    ///
    /// # Errors
    /// Fails where it does not fit: for a scheduler of another kind, and for settings that it does not have.
    pub fn replaced(self, name: SchedulerName) -> anyhow::Result<Self> {
        use SchedulerName::{Ddim, Dpm, DpmPlusPlus, Euler, UniPc};
        Ok(match (self, name) {
            (Self::Ddim(process) | Self::Dpm(process), Ddim) => Self::Ddim(process),
            (Self::Ddim(process) | Self::Dpm(process), Dpm) => Self::Dpm(process),
            (own @ Self::FlowMatchEuler(_), Euler) | (own @ Self::UniPc(_), UniPc) => own,
            (Self::FlowMatchEuler(config), UniPc) => Self::UniPc(multistep(&config, name)?),
            (Self::FlowMatchEuler(config), DpmPlusPlus) => Self::DpmSolver(multistep(&config, name)?),
            (Self::UniPc(config) | Self::DpmSolver(config), Euler) => Self::FlowMatchEuler(euler(&config)),
            (Self::UniPc(config) | Self::DpmSolver(config), DpmPlusPlus) => Self::DpmSolver(of_flow(&config)),
            (Self::DpmSolver(config), UniPc) => Self::UniPc(config),
            (Self::Ddim(_) | Self::Dpm(_), _) => bail!("{name}: this checkpoint takes ddim or dpm"),
            (Self::FlowMatchEuler(_) | Self::UniPc(_) | Self::DpmSolver(_), _) => {
                bail!("{name}: this checkpoint takes euler, unipc or dpm++")
            }
            (Self::EulerAncestral(_), _) => bail!("{name}: this checkpoint takes its own scheduler alone"),
        })
    }
}

/// Returns the settings of a multistep solver.
fn multistep(config: &flow_match_euler::Config, name: SchedulerName) -> anyhow::Result<unipc::Config> {
    for (key, set) in [
        ("use_dynamic_shifting", config.use_dynamic_shifting),
        ("use_karras_sigmas", config.use_karras_sigmas),
        ("use_exponential_sigmas", config.use_exponential_sigmas),
        ("invert_sigmas", config.invert_sigmas),
        ("stochastic_sampling", config.stochastic_sampling),
    ] {
        ensure!(
            !set,
            "{name}: this checkpoint's scheduler has {key}, which only euler has"
        );
    }
    Ok(unipc::Config::of_flow(
        config.num_train_timesteps,
        config.shift,
        config.shift_terminal,
    ))
}

/// Returns the settings of the second order, without those of a predictor and corrector.
fn of_flow(config: &unipc::Config) -> unipc::Config {
    unipc::Config::of_flow(config.num_train_timesteps, config.flow_shift, config.shift_terminal)
}

fn euler(config: &unipc::Config) -> flow_match_euler::Config {
    flow_match_euler::Config {
        num_train_timesteps: config.num_train_timesteps,
        shift: config.flow_shift,
        shift_terminal: config.shift_terminal,
        ..flow_match_euler::Config::default()
    }
}
