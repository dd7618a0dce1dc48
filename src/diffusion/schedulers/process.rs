//! Forward process x(t) = sqrt(a) x0 + sqrt(1 - a) n, and the x0 that a network's output implies.
//!
//! x0 = (x - sqrt(1 - a) n) / sqrt(a) from the noise, sqrt(a) x - sqrt(1 - a) v from the velocity.
//!
//! Shapes: B samples, ... any further axes.

use candle_core::{DType, Error, Result, Tensor};

use super::alphas::Alphas;
use super::config::ddpm::{Config, Prediction};

/// Noise by timestep.
#[derive(Debug, Clone)]
pub struct Process {
    /// Settings of the scheduler.
    pub config: Config,
    /// Cumulative products by timestep.
    pub alphas: Alphas,
}

impl Process {
    /// Process with a checkpoint's settings, which have been checked.
    pub fn new(config: Config) -> Self {
        let alphas = Alphas::new(&config);
        Self { config, alphas }
    }

    /// The same, with a table that is computed in f32 whatever the schedule.
    pub fn in_f32(config: Config) -> Self {
        let alphas = Alphas::in_f32(&config);
        Self { config, alphas }
    }

    /// Returns the noisy sample x(t), each sample of the batch at its own timestep.
    ///
    /// Always in f32: diffusers rounds a(t) to bf16 for bf16 samples, which would leave none of the noise at small
    /// timesteps.
    pub fn add_noise(&self, clean: &Tensor, noise: &Tensor, timesteps: &[i64]) -> Result<Tensor> {
        let (signal, sigma) = self.shares(clean, timesteps)?; // (B, 1, ...)
        let noisy = (clean.to_dtype(DType::F32)?.broadcast_mul(&signal)?
            + noise.to_dtype(DType::F32)?.broadcast_mul(&sigma)?)?;
        noisy.to_dtype(clean.dtype())
    }

    /// Returns the velocity v = sqrt(a) n - sqrt(1 - a) x0, the target of a `v_prediction` network.
    pub fn velocity(&self, clean: &Tensor, noise: &Tensor, timesteps: &[i64]) -> Result<Tensor> {
        let (signal, sigma) = self.shares(clean, timesteps)?; // (B, 1, ...)
        let velocity = (noise.to_dtype(DType::F32)?.broadcast_mul(&signal)?
            - clean.to_dtype(DType::F32)?.broadcast_mul(&sigma)?)?;
        velocity.to_dtype(clean.dtype())
    }

    /// Returns the clean sample implied by a network's `output` at `timestep`, in f32.
    pub fn original(&self, output: &Tensor, timestep: i64, sample: &Tensor) -> Result<Tensor> {
        let alpha = self.alphas.at(timestep)?;
        let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (output, sample) = (output.to_dtype(DType::F32)?, sample.to_dtype(DType::F32)?);
        match self.config.prediction_type {
            Prediction::Epsilon if alpha == 0.0 => Err(Error::Msg(format!(
                "prediction_type: at timestep {timestep} all is noise (rescale_betas_zero_snr), of which epsilon tells \
                 nothing about the sample"
            ))),
            Prediction::Epsilon => (sample - (output * sigma)?)? / signal,
            Prediction::Sample => Ok(output),
            Prediction::Velocity => (sample * signal)? - (output * sigma)?,
        }
    }

    /// Returns sqrt(a) and sqrt(1 - a) of each sample of the batch, (B, 1, ...).
    fn shares(&self, like: &Tensor, timesteps: &[i64]) -> Result<(Tensor, Tensor)> {
        if like.dims().first() != Some(&timesteps.len()) {
            return Err(Error::Msg(format!(
                "{} timesteps for a batch of shape {:?}",
                timesteps.len(),
                like.dims()
            )));
        }
        let alphas: Vec<f32> = timesteps
            .iter()
            .map(|t| Ok(self.alphas.at(*t)? as f32))
            .collect::<Result<_>>()?;
        let mut shape = vec![1; like.rank()];
        shape[0] = timesteps.len();
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, shape.clone(), like.device());
        let signal = tensor(alphas.iter().map(|alpha| alpha.sqrt()).collect())?;
        let sigma = tensor(alphas.iter().map(|alpha| (1.0 - alpha).sqrt()).collect())?;
        Ok((signal, sigma))
    }
}
