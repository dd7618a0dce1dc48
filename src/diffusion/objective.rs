//! What the network is trained to say: a clean sample, noise, and how they mix at a timestep.
//!
//! DDPM families (CogVideoX): t is one of the scheduler's timesteps, drawn evenly; x(t) = sqrt(a) x0 + sqrt(1 - a) n with
//! the checkpoint's own alphas; the target is v = sqrt(a) n - sqrt(1 - a) x0, or n, or x0, as `prediction_type` says. The
//! loss is the plain |v_hat - v|^2: to weigh |x0_hat - x0|^2 by 1 / (1 - a), as others do, comes to the same, because
//! x0_hat - x0 = -sqrt(1 - a) (v_hat - v).
//!
//! Flow matching (LTX-Video, Wan): a sigma is drawn as `timesteps` says; x = (1 - sigma) x0 + sigma n; the timestep is
//! sigma times the timesteps of training, never rounded; the target is n - x0. The loss is w(sigma) |v_hat - v|^2. The
//! first latent frame of a sample may be given clean: its own sigma and timestep are 0, and it does not count in the
//! loss, whose mean is over what does.
//!
//! Shapes: B samples, C channels, F frames, h and w rows and columns, in the order of the VAE.

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Result, Tensor};

use super::schedulers::config::{Prediction, flow_match_euler::TimeShift};
use super::schedulers::{Process, Scheduler};
use super::timesteps::{Config, Shift, Weighting, shifted};
use crate::rng::Rng;

/// The forward process of a family, and what its network predicts.
#[derive(Debug, Clone)]
pub enum Objective {
    Ddpm(Process),
    Flow(Flow),
}

/// Flow matching: straight from the sample to noise.
#[derive(Debug, Clone)]
pub struct Flow {
    config: Config,
    /// The checkpoint's, for its shift.
    scheduler: Scheduler,
}

/// Where each sample of a batch stands between clean and noise.
#[derive(Debug, Clone, PartialEq)]
pub struct Timesteps {
    /// As the network is told them: whole numbers of a table; sigma times the timesteps of training.
    pub values: Vec<f64>,
    /// Of flow matching: the share of noise.
    sigmas: Vec<f32>,
    /// Samples whose first latent frame is given clean.
    given: Vec<bool>,
}

/// What the network sees, and what it should answer. All in f32.
#[derive(Debug, Clone)]
pub struct Noised {
    pub noisy: Tensor,  // (B, C, F, h, w)
    pub target: Tensor, // (B, C, F, h, w)
    /// What each squared error counts in the mean, (B, 1, F or 1, 1, 1); none where all count alike.
    pub weight: Option<Tensor>,
}

impl Objective {
    /// What a checkpoint with this scheduler is trained for, by the settings of the run.
    ///
    /// # Errors
    /// Settings that such a checkpoint would ignore, by key.
    pub fn new(scheduler: &Scheduler, config: &Config) -> anyhow::Result<Self> {
        match scheduler {
            Scheduler::Ddim(process) | Scheduler::Dpm(process) => {
                let ignored = config.beyond_ddpm();
                ensure!(
                    ignored.is_empty(),
                    "diffusion.{}: this checkpoint draws each timestep of its table alike, and weighs them alike; only \
                     models of flow matching read this. Remove it",
                    ignored.join(", diffusion.")
                );
                Ok(Self::Ddpm(process.clone()))
            }
            Scheduler::FlowMatchEuler(scheduler) if scheduler.invert_sigmas => {
                bail!("scheduler_config.json: invert_sigmas: such models cannot be trained yet")
            }
            Scheduler::FlowMatchEuler(_) | Scheduler::UniPc(_) => Ok(Self::Flow(Flow {
                config: config.clone(),
                scheduler: scheduler.clone(),
            })),
        }
    }

    /// Timesteps for a batch of clips of `seq_len` tokens, where the family says how many: `torch.randint(0,
    /// num_train_timesteps, (B,))`, or as `timesteps` says.
    ///
    /// # Errors
    /// A shift by the clip's size, and none said.
    pub fn draw(&self, batch: usize, seq_len: Option<usize>, rng: &mut Rng) -> anyhow::Result<Timesteps> {
        match self {
            Self::Ddpm(process) => {
                let drawn = rng.randint(0, process.config.num_train_timesteps as i64, batch);
                Ok(Timesteps::tabled(&drawn))
            }
            Self::Flow(flow) => {
                let shift = flow.shift(seq_len)?;
                let drawn = flow.config.timesteps.draw(&flow.config, batch, rng);
                let sigmas = drawn.into_iter().map(|u| shifted(u, shift)).collect();
                Ok(Timesteps::flowing(sigmas, flow.scheduler.num_train_timesteps()))
            }
        }
    }

    /// Mixes `clean` and `noise`, of one shape, at these timesteps.
    ///
    /// # Errors
    /// Timesteps of the other kind; a frame given clean in DDPM, which knows no frames apart.
    pub fn mix(&self, clean: &Tensor, noise: &Tensor, at: &Timesteps) -> anyhow::Result<Noised> {
        let (clean, noise) = (clean.to_dtype(DType::F32)?, noise.to_dtype(DType::F32)?);
        match self {
            Self::Ddpm(process) => {
                ensure!(!at.any_given(), "no frame can be given clean at a timestep of a table");
                let at: Vec<i64> = at.values.iter().map(|value| *value as i64).collect();
                let target = match process.config.prediction_type {
                    Prediction::Velocity => process.velocity(&clean, &noise, &at)?,
                    Prediction::Epsilon => noise.clone(),
                    Prediction::Sample => clean.clone(),
                };
                Ok(Noised {
                    noisy: process.add_noise(&clean, &noise, &at)?,
                    target,
                    weight: None,
                })
            }
            Self::Flow(flow) => {
                ensure!(at.sigmas.len() == clean.dim(0)?, "one sigma for each sample is needed");
                let sigma = at.sigmas(clean.dim(2)?, clean.device())?;
                let left = clean.broadcast_mul(&sigma.affine(-1.0, 1.0)?)?;
                Ok(Noised {
                    noisy: (left + noise.broadcast_mul(&sigma)?)?,
                    target: (noise - &clean)?,
                    weight: flow.weight(at, clean.dim(2)?, clean.device())?,
                })
            }
        }
    }
}

impl Flow {
    /// k of the shift, for clips of so many tokens.
    fn shift(&self, seq_len: Option<usize>) -> anyhow::Result<f64> {
        if let Shift::Fixed(shift) = self.config.shift {
            return Ok(shift);
        }
        match &self.scheduler {
            Scheduler::FlowMatchEuler(scheduler) if scheduler.use_dynamic_shifting => {
                let seq_len = seq_len.context(
                    "diffusion.shift: auto: the checkpoint's scheduler shifts by the clip's size, which this family's \
                     pipeline does not say; give a number",
                )?;
                let mu = scheduler.mu(seq_len);
                Ok(match scheduler.time_shift_type {
                    TimeShift::Exponential => mu.exp(),
                    TimeShift::Linear => mu,
                })
            }
            Scheduler::FlowMatchEuler(scheduler) => Ok(scheduler.shift),
            Scheduler::UniPc(scheduler) => Ok(scheduler.flow_shift),
            Scheduler::Ddim(_) | Scheduler::Dpm(_) => Ok(1.0),
        }
    }

    /// By sigma, and 0 for frames that are given; scaled such that the mean over everything is that over what counts.
    fn weight(&self, at: &Timesteps, frames: usize, device: &Device) -> Result<Option<Tensor>> {
        if !at.any_given() && self.config.weighting == Weighting::None {
            return Ok(None);
        }
        let frames = if at.any_given() { frames } else { 1 };
        let all = at.sigmas.len() * frames;
        let counted = all - at.given.iter().filter(|given| **given).count();
        let share = all as f32 / counted as f32;
        let weights = at.sigmas.iter().map(|sigma| self.config.weighting.at(*sigma) * share);
        let by_sigma = weights.collect();
        at.by_frame(frames, by_sigma, device).map(Some)
    }
}

impl Timesteps {
    /// Of a table.
    pub fn tabled(values: &[i64]) -> Self {
        Self {
            values: values.iter().map(|value| *value as f64).collect(),
            sigmas: Vec::new(),
            given: Vec::new(),
        }
    }

    /// Of flow matching with so many timesteps in training.
    pub fn flowing(sigmas: Vec<f32>, num_train_timesteps: usize) -> Self {
        let timestep = |sigma: &f32| f64::from(*sigma * num_train_timesteps as f32);
        Self {
            values: sigmas.iter().map(timestep).collect(),
            sigmas,
            given: Vec::new(),
        }
    }

    /// The same, where the first latent frame of some samples, of several frames each, is given clean.
    pub fn with_given(self, given: Vec<bool>) -> Self {
        Self { given, ..self }
    }

    fn any_given(&self) -> bool {
        self.given.contains(&true)
    }

    /// As the network takes them, f32: (B), or (B, F) where the first of F frames of some sample is given.
    pub fn tensor(&self, frames: usize, device: &Device) -> Result<Tensor> {
        let values: Vec<f32> = self.values.iter().map(|value| *value as f32).collect();
        match self.any_given() {
            false => Tensor::new(values.as_slice(), device),
            true => self.by_frame(frames, values, device)?.reshape(((), frames)),
        }
    }

    /// (B, 1, F or 1, 1, 1)
    fn sigmas(&self, frames: usize, device: &Device) -> Result<Tensor> {
        let frames = if self.any_given() { frames } else { 1 };
        self.by_frame(frames, self.sigmas.clone(), device)
    }

    /// One number of each sample for all its frames, and 0 for those that are given: (B, 1, F, 1, 1).
    fn by_frame(&self, frames: usize, values: Vec<f32>, device: &Device) -> Result<Tensor> {
        let given = |sample: usize| self.given.get(sample).copied().unwrap_or(false);
        let each = values.iter().enumerate();
        let all = each.flat_map(|(sample, value)| {
            let number = move |frame| if frame == 0 && given(sample) { 0.0 } else { *value };
            (0..frames).map(number)
        });
        Tensor::from_vec(all.collect(), (values.len(), 1, frames, 1, 1), device)
    }
}

/// The mean of weight |prediction - target|^2 over everything, in f32: a scalar. The weight's shape need only broadcast.
pub fn loss(prediction: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    let squares = (prediction.to_dtype(DType::F32)? - target)?.sqr()?;
    match weight {
        None => squares.mean_all(),
        Some(weight) => squares.broadcast_mul(weight)?.mean_all(),
    }
}
