//! Min-SNR weighting: timesteps with little noise, which are easy and many, weigh less.  arXiv:2303.09556
//!
//! With the signal-to-noise ratio r = a / (1 - a) of a timestep and a limit g, the weight of a squared error is
//!
//! ```text
//! min(r, g) / r  of the noise      min(r, g) / (r + 1)  of a velocity      min(r, g)  of the clean sample
//! ```
//!
//! `compute_snr` of diffusers gives r, in f32 as (sqrt(a) / sqrt(1 - a))^2; so do we.

use candle_core::{Device, Result, Tensor};

use super::schedulers::Process;
use super::schedulers::config::Prediction;

/// Returns the weight of each sample's squared errors, (B, 1, 1, 1, 1), for their timesteps.
///
/// # Errors
/// Fails for a timestep that the table does not have.
pub fn weights(process: &Process, gamma: f64, timesteps: &[i64], device: &Device) -> Result<Tensor> {
    let gamma = gamma as f32;
    let weight = |timestep: &i64| {
        let alpha = process.alphas.at(*timestep)? as f32;
        let ratio = (alpha.sqrt() / (1.0 - alpha).sqrt()).powi(2);
        let least = ratio.min(gamma);
        Ok(match process.config.prediction_type {
            // A timestep of pure noise has no ratio to divide by, and full weight.
            Prediction::Epsilon => (gamma / ratio).min(1.0),
            Prediction::Velocity => least / (ratio + 1.0),
            Prediction::Sample => least,
        })
    };
    let all: Vec<f32> = timesteps.iter().map(weight).collect::<Result<_>>()?;
    Tensor::from_vec(all, (timesteps.len(), 1, 1, 1, 1), device)
}
