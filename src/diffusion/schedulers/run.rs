//! One sampling run: the timesteps in order, and what a step must know of the one before.
//!
//! ```ignore
//! let mut run = scheduler.start(50, Some(canvas_tokens))?;
//! while let Some(timestep) = run.timestep() {
//!     let output = network(&sample, timestep)?;
//!     let mut noise = None;
//!     for _ in 0..run.noise_draws()? {
//!         noise = Some(draw(sample.shape())?);
//!     }
//!     sample = run.step(&output, &sample, noise.as_ref())?.sample;
//! }
//! ```

use candle_core::{DType, Error, Result, Tensor};

use super::config::{flow_match_euler, unipc};
use super::dpm::Before;
use super::sigmas::Sigmas;
use super::unipc::History;
use super::{Process, Step, Stepped, ddim, dpm, euler};

/// A walk from noise to a sample.
#[derive(Debug, Clone)]
pub struct Run<'s> {
    solver: Solver<'s>,
    timesteps: Vec<f64>,
    skipped: usize,
    num_steps: usize,
    at: usize,
}

/// What takes the steps, with what it remembers.
#[derive(Debug, Clone)]
pub(super) enum Solver<'s> {
    Ddim(&'s Process),
    Dpm(&'s Process, Option<Before>),
    Euler(&'s flow_match_euler::Config, Vec<f32>),
    UniPc(&'s unipc::Config, Vec<f32>, History),
}

impl<'s> Run<'s> {
    /// Of the schedulers with a table of noise; their timesteps may be one more than the steps asked for.
    pub(super) fn tabled(solver: Solver<'s>, num_steps: usize, timesteps: Vec<i64>) -> Self {
        let timesteps = timesteps.into_iter().map(|timestep| timestep as f64).collect();
        Self::new(solver, num_steps, timesteps)
    }

    pub(super) fn euler(config: &'s flow_match_euler::Config, sigmas: Sigmas) -> Self {
        let num_steps = sigmas.timesteps.len();
        Self::new(Solver::Euler(config, sigmas.sigmas), num_steps, sigmas.timesteps)
    }

    pub(super) fn unipc(config: &'s unipc::Config, sigmas: Sigmas) -> Self {
        let num_steps = sigmas.timesteps.len();
        let solver = Solver::UniPc(config, sigmas.sigmas, History::default());
        Self::new(solver, num_steps, sigmas.timesteps)
    }

    fn new(solver: Solver<'s>, num_steps: usize, timesteps: Vec<f64>) -> Self {
        Self {
            solver,
            timesteps,
            skipped: 0,
            num_steps,
            at: 0,
        }
    }

    /// The same run without its first steps.
    pub(super) fn skip(mut self, steps: usize) -> Self {
        (self.skipped, self.at) = (steps, steps);
        self
    }

    /// All timesteps of this run, in order: whole numbers but for `FlowMatchEulerDiscreteScheduler`.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps[self.skipped..]
    }

    /// Where a run of flow matching stands at each step, and where it ends; None for schedulers with a table of noise.
    pub fn sigmas(&self) -> Option<&[f32]> {
        match &self.solver {
            Solver::Ddim(_) | Solver::Dpm(..) => None,
            Solver::Euler(_, sigmas) | Solver::UniPc(_, sigmas, _) => Some(&sigmas[self.skipped..]),
        }
    }

    /// Steps yet to take.
    pub fn remaining(&self) -> usize {
        self.timesteps.len() - self.at
    }

    /// The N that `guidance::dynamic_scale` counts: the steps asked for, less those that video-to-video leaves out.
    pub fn num_steps(&self) -> usize {
        self.num_steps - self.skipped
    }

    /// The timestep of the step to come, as the network is given it; None at the end.
    pub fn timestep(&self) -> Option<f64> {
        self.timesteps.get(self.at).copied()
    }

    /// A clean sample with the noise of the step to come: what video-to-video starts from, in the type of `clean`.
    ///
    /// # Errors
    /// The run is over.
    pub fn add_noise(&self, clean: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let timestep = self.timestep().ok_or_else(|| self.over())?;
        let share = match &self.solver {
            Solver::Ddim(process) | Solver::Dpm(process, _) => {
                return process.add_noise(clean, noise, &vec![timestep as i64; clean.dim(0)?]);
            }
            Solver::Euler(config, sigmas) if config.invert_sigmas => 1.0 - sigmas[self.at],
            Solver::Euler(_, sigmas) | Solver::UniPc(_, sigmas, _) => sigmas[self.at],
        };
        let noise = (noise.to_dtype(DType::F32)? * f64::from(share))?;
        let noisy = (noise + (clean.to_dtype(DType::F32)? * f64::from(1.0 - share))?)?;
        noisy.to_dtype(clean.dtype())
    }

    /// How many standard normal tensors the diffusers pipelines draw from their generator for the step to come.
    ///
    /// Each is `randn(sample.shape, dtype=sample.dtype)` on the generator's device, drawn after the network has run;
    /// CogVideoX's sample is (B, F, C, H, W) and of the prompt embeddings' type. (torch draws bf16 normals otherwise than
    /// f32 ones, so seeds compare in f32.) `step` takes the last of them.
    pub fn noise_draws(&self) -> Result<usize> {
        match (&self.solver, self.timestep()) {
            (Solver::Dpm(process, before), Some(timestep)) => {
                dpm::noise_draws(process, timestep as i64, self.num_steps, before.as_ref())
            }
            (Solver::Euler(config, _), Some(_)) => Ok(usize::from(config.stochastic_sampling)),
            _ => Ok(0),
        }
    }

    /// Takes the step to come, from the network's `output` at its timestep.
    ///
    /// # Errors
    /// The run is over, or noise is missing where `noise_draws` asks for some.
    pub fn step(&mut self, output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<Stepped> {
        let timestep = self.timestep().ok_or_else(|| self.over())? as i64;
        let step = Step {
            output,
            sample,
            timestep,
            num_steps: self.num_steps,
        };
        let stepped = match &mut self.solver {
            Solver::Ddim(process) => ddim::step(process, &step)?,
            Solver::Dpm(process, before) => {
                let noise = noise.ok_or_else(|| Error::Msg("a step of DPM needs noise".into()))?;
                let stepped = dpm::step(process, &step, before.as_ref(), noise)?;
                let original = stepped.original.clone();
                *before = Some(Before { timestep, original });
                stepped
            }
            Solver::Euler(config, sigmas) => {
                euler::step(config, [sigmas[self.at], sigmas[self.at + 1]], output, sample, noise)?
            }
            Solver::UniPc(config, sigmas, history) => history.step(config, sigmas, self.at, output, sample)?,
        };
        self.at += 1;
        Ok(stepped)
    }

    fn over(&self) -> Error {
        Error::Msg(format!("all {} steps are taken", self.timesteps().len()))
    }
}
