//! Normalisation of latents: a mean and a deviation for each channel, stored among the VAE's weights or in its config.
//!
//! Equals `_normalize_latents` and `_denormalize_latents` of diffusers' LTX pipelines, and what its Mochi pipeline does
//! before it decodes. L channels of latents.

use anyhow::ensure;
use candle_core::{DType, Device, Result, Tensor};

use crate::diffusion::posterior::Posterior;
use crate::nn::Weights;

/// Mean and standard deviation of latents by channel.
#[derive(Debug, Clone)]
pub struct LatentNorm {
    latents_mean: Tensor, // (1, L, 1, 1, 1) f32
    latents_std: Tensor,  // (1, L, 1, 1, 1) f32
    scaling_factor: f64,
}

impl LatentNorm {
    /// Reads `latents_mean` and `latents_std`, buffers of the checkpoint.
    pub fn new(latent_channels: usize, scaling_factor: f64, weights: &Weights) -> anyhow::Result<Self> {
        let weights = weights.to_dtype(DType::F32);
        let get = |name: &str| weights.get(latent_channels, name);
        let (mean, std) = (get("latents_mean")?, get("latents_std")?);
        for (name, values) in [("latents_mean", &mean), ("latents_std", &std)] {
            let finite = values.to_vec1::<f32>()?.iter().all(|value| value.is_finite());
            ensure!(finite, "{name} must be numbers");
        }
        let positive = std.to_vec1::<f32>()?.iter().all(|value| *value > 0.0);
        ensure!(positive, "latents_std must be above 0");
        let shape = (1, latent_channels, 1, 1, 1);
        Ok(Self {
            latents_mean: mean.reshape(shape)?,
            latents_std: std.reshape(shape)?,
            scaling_factor,
        })
    }

    /// Normalisation by mean and standard deviation of every channel.
    pub fn of([mean, std]: [&[f64]; 2], scaling_factor: f64) -> Result<Self> {
        let table = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            let count = values.len();
            Tensor::from_vec(values, (1, count, 1, 1, 1), &Device::Cpu)
        };
        Ok(Self {
            latents_mean: table(mean)?,
            latents_std: table(std)?,
            scaling_factor,
        })
    }

    /// Normalises latents (B, L, f, h, w) for the transformer: (x - mean) * scaling_factor / std.
    pub fn normalize(&self, latents: &Tensor) -> Result<Tensor> {
        let [mean, std] = self.like(latents)?;
        (latents.broadcast_sub(&mean)? * self.scaling_factor)?.broadcast_div(&std)
    }

    /// Returns the posterior of normalised samples, f32.
    pub fn normalize_posterior(&self, posterior: &Posterior) -> Result<Posterior> {
        let logvar = posterior.logvar.to_dtype(DType::F32)?;
        let [_, std] = self.like(&logvar)?;
        let shift = ((std.log()? * -2.0)? + 2.0 * self.scaling_factor.ln())?;
        Ok(Posterior {
            mean: self.normalize(&posterior.mean.to_dtype(DType::F32)?)?,
            logvar: logvar.broadcast_add(&shift)?,
        })
    }

    /// Inverts `normalize`: x * std / scaling_factor + mean.
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        let [mean, std] = self.like(latents)?;
        (latents.broadcast_mul(&std)? * (1.0 / self.scaling_factor))?.broadcast_add(&mean)
    }

    fn like(&self, latents: &Tensor) -> Result<[Tensor; 2]> {
        let like = |values: &Tensor| values.to_device(latents.device())?.to_dtype(latents.dtype());
        Ok([like(&self.latents_mean)?, like(&self.latents_std)?])
    }
}
