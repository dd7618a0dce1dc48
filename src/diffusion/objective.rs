//! Training objectives: how a clean sample and noise mix at a timestep, and the network's target.
//!
//! DDPM families (CogVideoX, Allegro): t is one of the scheduler's timesteps, drawn uniformly; x(t) = sqrt(a) x0 + sqrt(1 - a) n
//! with the checkpoint's own alphas; the target is v = sqrt(a) n - sqrt(1 - a) x0, or n, or x0, by `prediction_type`.
//! The loss is the plain |v_hat - v|^2. Others weight |x0_hat - x0|^2 by 1 / (1 - a), which is the same, because
//! x0_hat - x0 = -sqrt(1 - a) (v_hat - v). `min_snr_gamma` weights the samples ([`super::min_snr`]); with `noise_offset` o the
//! noise is n + o m, where m is one standard normal number for each sample and channel.
//!
//! Flow matching (LTX-Video, Wan): a sigma is drawn as in `timesteps`; x = (1 - sigma) x0 + sigma n; the timestep is
//! sigma times the number of training timesteps, never rounded; the target is n - x0. The loss is w(sigma) |v_hat -
//! v|^2. Networks whose time runs from noise to sample (Mochi; `invert_sigmas` of the scheduler) take the timestep of 1 - sigma,
//! and their target is x0 - n. The first latent frame of a sample may be given clean as a condition: its sigma is 0, and the mean of the
//! loss excludes it.
//!
//! Shapes: B samples, C channels, F frames, h and w rows and columns, in the order of the VAE.

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Result, Tensor};

use super::min_snr;
use super::schedulers::config::{Prediction, flow_match_euler::TimeShift};
use super::schedulers::{Process, Scheduler};
use super::timesteps::{Config, Shift, Weighting, shifted};
use crate::rng::Rng;

/// Forward process of a family, with its prediction target.
#[derive(Debug, Clone)]
pub enum Objective {
    /// Denoising diffusion by a table of variances.
    Ddpm(Ddpm),
    /// Flow matching along straight lines.
    Flow(Flow),
}

/// Denoising diffusion by a table of variances.
#[derive(Debug, Clone)]
pub struct Ddpm {
    process: Process,
    /// Limit of the signal-to-noise ratio, where losses are weighted.
    min_snr_gamma: Option<f64>,
    /// Deviation of what is added to all noise of a channel.
    noise_offset: f64,
}

/// Flow matching: a straight line from the sample to noise.
#[derive(Debug, Clone)]
pub struct Flow {
    config: Config,
    /// The checkpoint's scheduler, for its shift.
    scheduler: Scheduler,
}

/// Noise level of each sample in a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Timesteps {
    /// Timesteps as the network takes them: integers of a table, or sigma (or 1 - sigma) times the number of training
    /// timesteps.
    pub values: Vec<f64>,
    /// Sigmas of flow matching: the share of noise.
    sigmas: Vec<f32>,
    /// True for samples whose first latent frame is given clean.
    given: Vec<bool>,
    /// Timestep of a clean frame.
    clean: f64,
}

/// Noised input and target of the network, all in f32.
#[derive(Debug, Clone)]
pub struct Noised {
    /// Noisy latents (B, C, F, h, w).
    pub noisy: Tensor,
    /// Expected output of the network (B, C, F, h, w).
    pub target: Tensor,
    /// Weight of each squared error in the mean, (B, 1, F or 1, 1, 1); None for equal weights.
    pub weight: Option<Tensor>,
}

impl Objective {
    /// Objective of a checkpoint with this scheduler, under the run's settings.
    ///
    /// # Errors
    /// Lists the keys that such a checkpoint would ignore.
    pub fn new(scheduler: &Scheduler, config: &Config) -> anyhow::Result<Self> {
        match scheduler {
            Scheduler::Ddim(process) | Scheduler::Dpm(process) | Scheduler::EulerAncestral(process) => {
                let ignored = config.beyond_ddpm();
                ensure!(
                    ignored.is_empty(),
                    "diffusion.{}: this checkpoint draws all timesteps with equal probability and equal weight; only \
                     models of flow matching read this. Remove it",
                    ignored.join(", diffusion.")
                );
                Ok(Self::Ddpm(Ddpm {
                    process: process.clone(),
                    min_snr_gamma: config.min_snr_gamma,
                    noise_offset: config.noise_offset,
                }))
            }
            Scheduler::FlowMatchEuler(_) | Scheduler::UniPc(_) | Scheduler::DpmSolver(_) => {
                let ignored = config.beyond_flow();
                ensure!(
                    ignored.is_empty(),
                    "diffusion.{}: this checkpoint learns flow matching; only models with a table of noise read this. \
                     Remove it",
                    ignored.join(", diffusion.")
                );
                Ok(Self::Flow(Flow {
                    config: config.clone(),
                    scheduler: scheduler.clone(),
                }))
            }
        }
    }

    /// Draws timesteps for a batch of clips, whose sequences are `seq_len` tokens long if the family reports it:
    /// `torch.randint(0, num_train_timesteps, (B,))`, or as in `timesteps`.
    ///
    /// # Errors
    /// Fails for a shift that depends on the clip's size without a `seq_len`.
    pub fn draw(&self, batch: usize, seq_len: Option<usize>, rng: &mut Rng) -> anyhow::Result<Timesteps> {
        match self {
            Self::Ddpm(Ddpm { process, .. }) => {
                let drawn = rng.randint(0, process.config.num_train_timesteps as i64, batch);
                Ok(Timesteps::tabled(&drawn))
            }
            Self::Flow(flow) => {
                let shift = flow.shift(seq_len)?;
                let drawn = flow.config.timesteps.draw(&flow.config, batch, rng);
                let sigmas = drawn.into_iter().map(|u| shifted(u, shift)).collect();
                let num_train_timesteps = flow.scheduler.num_train_timesteps();
                Ok(match flow.is_inverted() {
                    false => Timesteps::flowing(sigmas, num_train_timesteps),
                    true => Timesteps::flowing_back(sigmas, num_train_timesteps),
                })
            }
        }
    }

    /// Offsets drawn noise (B, C, F, h, w) channel by channel, with `noise_offset`: by `randn(B, C, 1, 1, 1)` times it.
    /// Draws nothing if it is 0.
    pub fn offset(&self, noise: Tensor, rng: &mut Rng) -> Result<Tensor> {
        match self {
            Self::Ddpm(Ddpm { noise_offset, .. }) if *noise_offset != 0.0 => {
                let (batch, channels, ..) = noise.dims5()?;
                let drawn = Tensor::from_vec(rng.randn(batch * channels), (batch, channels, 1, 1, 1), noise.device())?;
                noise.broadcast_add(&(drawn * *noise_offset)?)
            }
            Self::Ddpm(_) | Self::Flow(_) => Ok(noise),
        }
    }

    /// Mixes `clean` and `noise`, of the same shape, at these timesteps.
    ///
    /// # Errors
    /// Fails for timesteps of the other kind, and for a clean first frame with DDPM, whose timesteps are per sample.
    pub fn mix(&self, clean: &Tensor, noise: &Tensor, at: &Timesteps) -> anyhow::Result<Noised> {
        let (clean, noise) = (clean.to_dtype(DType::F32)?, noise.to_dtype(DType::F32)?);
        match self {
            Self::Ddpm(Ddpm {
                process, min_snr_gamma, ..
            }) => {
                ensure!(!at.any_given(), "no frame can be given clean at a timestep of a table");
                let at: Vec<i64> = at.values.iter().map(|value| *value as i64).collect();
                let target = match process.config.prediction_type {
                    Prediction::Velocity => process.velocity(&clean, &noise, &at)?,
                    Prediction::Epsilon => noise.clone(),
                    Prediction::Sample => clean.clone(),
                };
                let weight = min_snr_gamma.map(|gamma| min_snr::weights(process, gamma, &at, clean.device()));
                Ok(Noised {
                    noisy: process.add_noise(&clean, &noise, &at)?,
                    target,
                    weight: weight.transpose()?,
                })
            }
            Self::Flow(flow) => {
                ensure!(at.sigmas.len() == clean.dim(0)?, "one sigma for each sample is needed");
                let sigma = at.sigmas(clean.dim(2)?, clean.device())?;
                let left = clean.broadcast_mul(&sigma.affine(-1.0, 1.0)?)?;
                Ok(Noised {
                    noisy: (left + noise.broadcast_mul(&sigma)?)?,
                    target: match flow.is_inverted() {
                        false => (noise - &clean)?,
                        true => (&clean - noise)?,
                    },
                    weight: flow.weight(at, clean.dim(2)?, clean.device())?,
                })
            }
        }
    }
}

impl Flow {
    /// True if the network's time runs from noise to sample.
    fn is_inverted(&self) -> bool {
        matches!(&self.scheduler, Scheduler::FlowMatchEuler(scheduler) if scheduler.invert_sigmas)
    }

    /// Returns k of the shift, for clips of `seq_len` tokens.
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
            Scheduler::UniPc(scheduler) | Scheduler::DpmSolver(scheduler) => Ok(scheduler.flow_shift),
            Scheduler::Ddim(_) | Scheduler::Dpm(_) | Scheduler::EulerAncestral(_) => Ok(1.0),
        }
    }

    /// Weights by sigma, 0 for given frames; scaled such that the mean over everything equals that over the counted
    /// frames.
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
        at.by_frame(frames, by_sigma, 0.0, device).map(Some)
    }
}

impl Timesteps {
    /// Timesteps of a table.
    pub fn tabled(values: &[i64]) -> Self {
        Self {
            values: values.iter().map(|value| *value as f64).collect(),
            sigmas: Vec::new(),
            given: Vec::new(),
            clean: 0.0,
        }
    }

    /// Timesteps of flow matching, for a number of training timesteps.
    pub fn flowing(sigmas: Vec<f32>, num_train_timesteps: usize) -> Self {
        let timestep = |sigma: &f32| f64::from(*sigma * num_train_timesteps as f32);
        Self {
            values: sigmas.iter().map(timestep).collect(),
            sigmas,
            given: Vec::new(),
            clean: 0.0,
        }
    }

    /// Same where the network's time runs from noise to sample.
    pub fn flowing_back(sigmas: Vec<f32>, num_train_timesteps: usize) -> Self {
        let timestep = |sigma: &f32| f64::from((1.0 - sigma) * num_train_timesteps as f32);
        Self {
            values: sigmas.iter().map(timestep).collect(),
            sigmas,
            given: Vec::new(),
            clean: num_train_timesteps as f64,
        }
    }

    /// Marks samples, of several frames each, whose first latent frame is given clean.
    pub fn with_given(self, given: Vec<bool>) -> Self {
        Self { given, ..self }
    }

    fn any_given(&self) -> bool {
        self.given.contains(&true)
    }

    /// Returns the network's input in f32: (B), or (B, F) if the first of F frames of some sample is given.
    pub fn tensor(&self, frames: usize, device: &Device) -> Result<Tensor> {
        let values: Vec<f32> = self.values.iter().map(|value| *value as f32).collect();
        match self.any_given() {
            false => Tensor::new(values.as_slice(), device),
            true => self
                .by_frame(frames, values, self.clean as f32, device)?
                .reshape(((), frames)),
        }
    }

    /// Returns the sigmas, (B, 1, F or 1, 1, 1).
    fn sigmas(&self, frames: usize, device: &Device) -> Result<Tensor> {
        let frames = if self.any_given() { frames } else { 1 };
        self.by_frame(frames, self.sigmas.clone(), 0.0, device)
    }

    /// Expands a number per sample to its frames, with another for given frames: (B, 1, F, 1, 1).
    fn by_frame(&self, frames: usize, values: Vec<f32>, clean: f32, device: &Device) -> Result<Tensor> {
        let given = |sample: usize| self.given.get(sample).copied().unwrap_or(false);
        let each = values.iter().enumerate();
        let all = each.flat_map(|(sample, value)| {
            let number = move |frame| if frame == 0 && given(sample) { clean } else { *value };
            (0..frames).map(number)
        });
        Tensor::from_vec(all.collect(), (values.len(), 1, frames, 1, 1), device)
    }
}

/// Returns the mean of weight |prediction - target|^2 over all elements, in f32: a scalar. The weight is broadcast.
pub fn loss(prediction: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    let squares = (prediction.to_dtype(DType::F32)? - target)?.sqr()?;
    match weight {
        None => squares.mean_all(),
        Some(weight) => squares.broadcast_mul(weight)?.mean_all(),
    }
}
