//! One sampling run: the timesteps in order, and what a step must know of the one before.
//!
//! ```ignore
//! let mut run = scheduler.start(50)?;
//! while let Some(timestep) = run.timestep() {
//!     let output = network(&sample, timestep)?;
//!     let mut noise = None;
//!     for _ in 0..run.noise_draws()? {
//!         noise = Some(draw(sample.shape())?);
//!     }
//!     sample = run.step(&output, &sample, noise.as_ref())?.sample;
//! }
//! ```

use candle_core::{Error, Result, Tensor};

use super::dpm::Before;
use super::{Process, Scheduler, Step, Stepped, ddim, dpm};

/// A walk from noise to a sample.
#[derive(Debug, Clone)]
pub struct Run<'s> {
    scheduler: &'s Scheduler,
    num_steps: usize,
    timesteps: Vec<i64>,
    skipped: usize,
    at: usize,
    before: Option<Before>,
}

impl<'s> Run<'s> {
    pub(super) fn new(scheduler: &'s Scheduler, num_steps: usize, timesteps: Vec<i64>, skipped: usize) -> Self {
        Self {
            scheduler,
            num_steps,
            timesteps: timesteps.into_iter().skip(skipped).collect(),
            skipped,
            at: 0,
            before: None,
        }
    }

    /// All timesteps of this run, in order.
    pub fn timesteps(&self) -> &[i64] {
        &self.timesteps
    }

    /// Steps yet to take.
    pub fn remaining(&self) -> usize {
        self.timesteps.len() - self.at
    }

    /// The noise behind the run.
    pub fn process(&self) -> &Process {
        self.scheduler.process()
    }

    /// Standard deviation of the noise that the run starts from.
    pub fn init_noise_sigma(&self) -> f64 {
        self.scheduler.init_noise_sigma()
    }

    /// The N that `guidance::dynamic_scale` counts: the steps asked for, less those that video-to-video leaves out.
    pub fn num_steps(&self) -> usize {
        self.num_steps - self.skipped
    }

    /// The timestep of the step to come; None at the end.
    pub fn timestep(&self) -> Option<i64> {
        self.timesteps.get(self.at).copied()
    }

    /// How many standard normal tensors the diffusers pipelines draw from their generator for the step to come.
    ///
    /// Each is `randn(sample.shape, dtype=sample.dtype)` on the generator's device, drawn after the network has run;
    /// the sample is (B, F, C, H, W) and of the prompt embeddings' type. (torch draws bf16 normals otherwise than f32
    /// ones, so seeds compare in f32.) `step` takes the last of them.
    pub fn noise_draws(&self) -> Result<usize> {
        match (self.scheduler, self.timestep()) {
            (Scheduler::Dpm(process), Some(timestep)) => {
                dpm::noise_draws(process, timestep, self.num_steps, self.before.as_ref())
            }
            _ => Ok(0),
        }
    }

    /// Takes the step to come, from the network's `output` at its timestep.
    ///
    /// # Errors
    /// The run is over, or noise is missing where `noise_draws` asks for some.
    pub fn step(&mut self, output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<Stepped> {
        let Some(timestep) = self.timestep() else {
            return Err(Error::Msg(format!("all {} steps are taken", self.timesteps.len())));
        };
        let step = Step {
            output,
            sample,
            timestep,
            num_steps: self.num_steps,
        };
        let stepped = match self.scheduler {
            Scheduler::Ddim(process) => ddim::step(process, &step)?,
            Scheduler::Dpm(process) => {
                let noise = noise.ok_or_else(|| Error::Msg("a step of DPM needs noise".into()))?;
                dpm::step(process, &step, self.before.as_ref(), noise)?
            }
        };
        self.before = Some(Before {
            timestep,
            original: stepped.original.clone(),
        });
        self.at += 1;
        Ok(stepped)
    }
}
