//! One step of DDIM without noise, as in `CogVideoXDDIMScheduler`.  arXiv:2010.02502
//!
//! x' = r x + (sqrt(a') - r sqrt(a)) x0 with r = sqrt((1 - a') / (1 - a)), a of the step's timestep and a' of its end.

use candle_core::{DType, Result};

use super::process::Process;
use super::{Step, Stepped};

/// Returns the sample after one step, and the predicted clean sample.
pub fn step(process: &Process, step: &Step) -> Result<Stepped> {
    let alpha = process.alphas.at(step.timestep)?;
    let (alpha_after, _) = process.alphas.after(step.timestep, step.num_steps)?;
    let original = process.original(step.output, step.timestep, step.sample)?;
    let keep = ((1.0 - alpha_after) / (1.0 - alpha)).sqrt();
    let take = alpha_after.sqrt() - alpha.sqrt() * keep;
    let sample = ((step.sample.to_dtype(DType::F32)? * keep)? + (&original * take)?)?;
    Ok(Stepped { sample, original })
}
