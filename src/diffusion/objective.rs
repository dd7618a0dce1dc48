//! What the network is trained to say: a clean sample, noise, and how they mix at a timestep.
//!
//! DDPM families (CogVideoX): t is one of the scheduler's timesteps, drawn evenly; x(t) = sqrt(a) x0 + sqrt(1 - a) n with
//! the checkpoint's own alphas; the target is v = sqrt(a) n - sqrt(1 - a) x0, or n, or x0, as `prediction_type` says. The
//! loss is the plain |v_hat - v|^2: to weigh |x0_hat - x0|^2 by 1 / (1 - a), as others do, comes to the same, because
//! x0_hat - x0 = -sqrt(1 - a) (v_hat - v).
//!
//! Shapes: B samples, ... whatever the family's latents have.

use candle_core::{DType, Device, Result, Tensor};

use super::schedulers::Process;
use super::schedulers::config::Prediction;
use crate::rng::Rng;

/// The forward process of a family, and what its network predicts.
#[derive(Debug, Clone)]
pub enum Objective {
    Ddpm(Process),
}

/// Where each sample of a batch stands between clean and noise.
#[derive(Debug, Clone, PartialEq)]
pub struct Timesteps(pub Vec<i64>);

/// What the network sees, and what it should answer. Both in f32.
#[derive(Debug, Clone)]
pub struct Noised {
    pub noisy: Tensor,  // (B, ...)
    pub target: Tensor, // (B, ...)
}

impl Objective {
    /// Timesteps for a batch: `torch.randint(0, num_train_timesteps, (B,))`.
    pub fn draw(&self, batch: usize, rng: &mut Rng) -> Timesteps {
        let Self::Ddpm(process) = self;
        Timesteps(rng.randint(0, process.config.num_train_timesteps as i64, batch))
    }

    /// Mixes `clean` and `noise`, of one shape, at these timesteps.
    pub fn mix(&self, clean: &Tensor, noise: &Tensor, at: &Timesteps) -> Result<Noised> {
        let Self::Ddpm(process) = self;
        let (clean, noise) = (clean.to_dtype(DType::F32)?, noise.to_dtype(DType::F32)?);
        let target = match process.config.prediction_type {
            Prediction::Velocity => process.velocity(&clean, &noise, &at.0)?,
            Prediction::Epsilon => noise.clone(),
            Prediction::Sample => clean.clone(),
        };
        Ok(Noised {
            noisy: process.add_noise(&clean, &noise, &at.0)?,
            target,
        })
    }
}

impl Timesteps {
    /// As the network takes them, (B).
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        Tensor::new(self.0.as_slice(), device)
    }
}

/// The mean of |prediction - target|^2 over everything, in f32: a scalar.
pub fn loss(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    (prediction.to_dtype(DType::F32)? - target)?.sqr()?.mean_all()
}
