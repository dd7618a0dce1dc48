//! One sampling run: the timesteps in order, and the state carried between steps.
//!
//! See [`super`] for a whole run.

use candle_core::{DType, Error, Result, Tensor};

use super::config::{flow_match_euler, unipc};
use super::dpm::Before;
use super::sigmas::Sigmas;
use super::unipc::History;
use super::{Process, Step, Stepped, ddim, dpm, euler, euler_ancestral, spacing};

/// A run from noise to a sample.
#[derive(Debug, Clone)]
pub struct Run<'s> {
    solver: Solver<'s>,
    timesteps: Vec<f64>,
    skipped: usize,
    num_steps: usize,
    at: usize,
}

/// Solver of the steps, with its state.
#[derive(Debug, Clone)]
pub(super) enum Solver<'s> {
    Ddim(&'s Process),
    Dpm(&'s Process, Option<Before>),
    EulerAncestral(&'s Process, Vec<f32>),
    Euler(&'s flow_match_euler::Config, Vec<f32>),
    UniPc(&'s unipc::Config, Vec<f32>, History),
}

impl<'s> Run<'s> {
    /// Run of a scheduler with a table of noise; it may have one timestep more than the requested steps.
    pub(super) fn tabled(solver: Solver<'s>, num_steps: usize, timesteps: Vec<i64>) -> Self {
        let timesteps = timesteps.into_iter().map(|timestep| timestep as f64).collect();
        Self::new(solver, num_steps, timesteps)
    }

    pub(super) fn euler(config: &'s flow_match_euler::Config, sigmas: Sigmas) -> Self {
        let num_steps = sigmas.timesteps.len();
        Self::new(Solver::Euler(config, sigmas.sigmas), num_steps, sigmas.timesteps)
    }

    pub(super) fn euler_ancestral(process: &'s Process, sigmas: Sigmas) -> Self {
        let num_steps = sigmas.timesteps.len();
        Self::new(
            Solver::EulerAncestral(process, sigmas.sigmas),
            num_steps,
            sigmas.timesteps,
        )
    }

    pub(super) fn unipc(config: &'s unipc::Config, sigmas: Sigmas) -> Self {
        let num_steps = sigmas.timesteps.len();
        let solver = Solver::UniPc(config, sigmas.sigmas, History::default());
        Self::new(solver, num_steps, sigmas.timesteps)
    }

    pub(super) fn dpm_solver(config: &'s unipc::Config, sigmas: Sigmas) -> Self {
        let num_steps = sigmas.timesteps.len();
        let solver = Solver::UniPc(config, sigmas.sigmas, History::without_corrector());
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

    /// Skips the first steps, so that a change of this strength is left: for video to video.
    ///
    /// # Errors
    /// Fails for a strength outside of 0..=1, and for one too small for a single step.
    pub fn skip_by(mut self, strength: f64) -> anyhow::Result<Self> {
        let steps = spacing::skipped(self.timesteps.len(), strength)?;
        (self.skipped, self.at) = (steps, steps);
        Ok(self)
    }

    /// Returns all timesteps of this run, in order: integers except for both schedulers of Euler's method.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps[self.skipped..]
    }

    /// Returns the same with noise at the end of the training's timesteps, 1000, also where the network's time runs the other way.
    pub fn noise_timesteps(&self) -> Vec<f64> {
        let timesteps = self.timesteps().iter();
        match &self.solver {
            Solver::Euler(config, _) if config.invert_sigmas => timesteps
                .map(|timestep| config.num_train_timesteps as f64 - timestep)
                .collect(),
            _ => timesteps.copied().collect(),
        }
    }

    /// Returns the sigmas of the run, with the final one; None for schedulers that step from timestep to timestep.
    pub fn sigmas(&self) -> Option<&[f32]> {
        match &self.solver {
            Solver::Ddim(_) | Solver::Dpm(..) => None,
            Solver::EulerAncestral(_, sigmas) | Solver::Euler(_, sigmas) | Solver::UniPc(_, sigmas, _) => {
                Some(&sigmas[self.skipped..])
            }
        }
    }

    /// Returns the number of remaining steps.
    pub fn remaining(&self) -> usize {
        self.timesteps.len() - self.at
    }

    /// Returns the N of `guidance::dynamic_scale`: the requested steps, less those that video-to-video skips.
    pub fn num_steps(&self) -> usize {
        self.num_steps - self.skipped
    }

    /// Returns the timestep of the next step, as the network takes it; None at the end.
    pub fn timestep(&self) -> Option<f64> {
        self.timesteps.get(self.at).copied()
    }

    /// Scales standard normal numbers to the noise that the run starts from, in their type.
    pub fn first_noise(&self, noise: &Tensor) -> Result<Tensor> {
        match &self.solver {
            Solver::EulerAncestral(process, sigmas) => {
                noise * f64::from(euler_ancestral::initial_sigma(process, sigmas))
            }
            Solver::Ddim(_) | Solver::Dpm(..) | Solver::Euler(..) | Solver::UniPc(..) => Ok(noise.clone()),
        }
    }

    /// Returns the network's input at the next step for `sample`, in its type: for most schedulers the sample itself.
    ///
    /// # Errors
    /// Fails if the run is over.
    pub fn model_input(&self, sample: &Tensor) -> Result<Tensor> {
        match &self.solver {
            Solver::EulerAncestral(_, sigmas) if self.remaining() > 0 => {
                euler_ancestral::model_input(sigmas[self.at], sample)
            }
            Solver::EulerAncestral(..) => Err(self.over()),
            Solver::Ddim(_) | Solver::Dpm(..) | Solver::Euler(..) | Solver::UniPc(..) => Ok(sample.clone()),
        }
    }

    /// Adds the noise of the next step to a clean sample, the start of video-to-video, in the type of `clean`.
    ///
    /// # Errors
    /// Fails if the run is over.
    pub fn add_noise(&self, clean: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let timestep = self.timestep().ok_or_else(|| self.over())?;
        let share = match &self.solver {
            Solver::Ddim(process) | Solver::Dpm(process, _) => {
                return process.add_noise(clean, noise, &vec![timestep as i64; clean.dim(0)?]);
            }
            Solver::EulerAncestral(_, sigmas) => {
                let noise = (noise.to_dtype(DType::F32)? * f64::from(sigmas[self.at]))?;
                return (clean.to_dtype(DType::F32)? + noise)?.to_dtype(clean.dtype());
            }
            Solver::Euler(config, sigmas) if config.invert_sigmas => 1.0 - sigmas[self.at],
            Solver::Euler(_, sigmas) | Solver::UniPc(_, sigmas, _) => sigmas[self.at],
        };
        let noise = (noise.to_dtype(DType::F32)? * f64::from(share))?;
        let noisy = (noise + (clean.to_dtype(DType::F32)? * f64::from(1.0 - share))?)?;
        noisy.to_dtype(clean.dtype())
    }

    /// Returns the number of standard normal tensors that the diffusers pipelines draw from their generator for the
    /// next step.
    ///
    /// Each is `randn(sample.shape, dtype=sample.dtype)` on the generator's device, drawn after the network has run;
    /// CogVideoX's sample is (B, F, C, H, W) and of the prompt embeddings' type. (torch draws bf16 normals differently
    /// from f32 ones, so seeds match only in f32.) `step` takes the last of them.
    pub fn noise_draws(&self) -> Result<usize> {
        match (&self.solver, self.timestep()) {
            (Solver::Dpm(process, before), Some(timestep)) => {
                dpm::noise_draws(process, timestep as i64, self.num_steps, before.as_ref())
            }
            (Solver::EulerAncestral(..), Some(_)) => Ok(1),
            (Solver::Euler(config, _), Some(_)) => Ok(usize::from(config.stochastic_sampling)),
            _ => Ok(0),
        }
    }

    /// Takes the next step, from the network's `output` at its timestep.
    ///
    /// # Errors
    /// Fails if the run is over, or without noise when `noise_draws` requires it.
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
            Solver::EulerAncestral(process, sigmas) => {
                euler_ancestral::step(process, [sigmas[self.at], sigmas[self.at + 1]], output, sample, noise)?
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
