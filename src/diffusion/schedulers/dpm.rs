//! One step of the second-order multistep SDE solver DPM-Solver++(2M), as in `CogVideoXDPMScheduler`. arXiv:2211.01095
//!
//! With l = log(sqrt(a / (1 - a))) of the step's timestep (l), of its end (l') and of the timestep before (l_b),
//! h = l' - l and r = (l - l_b) / h:
//!
//! x' = e^-h sqrt((1 - a') / (1 - a)) x - sqrt(a') (e^-2h - 1) d + sqrt(1 - a') sqrt(1 - e^-2h) n
//!
//! where d is x0, or from the second step on (1 + 1/2r) x0 - 1/2r x0_b with the x0 of the step before.
//!
//! At a = 0 and a' = 1 the logarithms are infinite, but the formula has finite limits.

use candle_core::{DType, Error, Result, Tensor};

use super::process::Process;
use super::{Step, Stepped};

/// State of the previous step.
#[derive(Debug, Clone)]
pub struct Before {
    /// Timestep of the previous step.
    pub timestep: i64,
    /// Its prediction of the clean sample.
    pub original: Tensor,
}

/// Returns the number of noise tensors, of the sample's shape, that the class of diffusers draws in this step. Only the
/// last counts.
///
/// It draws one, and another if it continues to the second order: in each step but the first and those that end below
/// timestep 0. Reproducing its seeds requires advancing the generator as far.
pub fn noise_draws(process: &Process, timestep: i64, num_steps: usize, before: Option<&Before>) -> Result<usize> {
    let (_, is_timestep) = process.alphas.after(timestep, num_steps)?;
    Ok(if is_timestep && before.is_some() { 2 } else { 1 })
}

/// Returns the sample after one step, and the predicted clean sample.
///
/// `noise` is standard normal, of the sample's shape.
pub fn step(process: &Process, step: &Step, before: Option<&Before>, noise: &Tensor) -> Result<Stepped> {
    if noise.shape() != step.sample.shape() {
        return Err(Error::Msg(format!(
            "noise of shape {:?} for a sample of shape {:?}",
            noise.dims(),
            step.sample.dims()
        )));
    }
    let alpha = process.alphas.at(step.timestep)?;
    let (alpha_after, is_timestep) = process.alphas.after(step.timestep, step.num_steps)?;
    let original = process.original(step.output, step.timestep, step.sample)?;
    let lambda = |alpha: f64| (alpha / (1.0 - alpha)).sqrt().ln();
    let h = lambda(alpha_after) - lambda(alpha);

    let direction = match before.filter(|_| is_timestep) {
        Some(before) => {
            let r = (lambda(alpha) - lambda(process.alphas.at(before.timestep)?)) / h;
            let half = 1.0 / (2.0 * r);
            ((&original * (1.0 + half))? - (&before.original * half)?)?
        }
        None => original.clone(),
    };
    let keep = ((1.0 - alpha_after) / (1.0 - alpha)).sqrt() * (-h).exp();
    let take = -(-2.0 * h).exp_m1() * alpha_after.sqrt();
    let stir = (1.0 - alpha_after).sqrt() * (1.0 - (-2.0 * h).exp()).sqrt();
    let sample = ((step.sample.to_dtype(DType::F32)? * keep)? + (direction * take)?)?;
    let sample = (sample + (noise.to_dtype(DType::F32)? * stir)?)?;
    Ok(Stepped { sample, original })
}
