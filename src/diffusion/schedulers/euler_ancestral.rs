//! Euler's method with ancestral noise, as in `EulerAncestralDiscreteScheduler`: the spacing of its steps, and one step.
//!
//! The sample is x0 + s n with s = sqrt((1 - a) / a), so the network gets it as x / sqrt(s^2 + 1). A step from s to s'
//! goes down to d and adds noise of u:
//!
//! ```text
//! u = s' sqrt(1 - s'^2 / s^2),  d = sqrt(s'^2 - u^2),  x' = x + (d - s) (x - x0) / s + u n
//! ```
//!
//! torch computes the table and the scalars of a step in f32; so do we, value by value.

use anyhow::ensure;
use candle_core::{DType, Error, Result, Tensor};

use super::config::{Prediction, Spacing};
use super::process::Process;
use super::sigmas::{Sigmas, linspace};
use super::{Stepped, spacing};

/// Returns the timesteps and sigmas of a run of `num_steps`, from the noisiest on: `set_timesteps`. Timesteps between those
/// of the table, which `linspace` visits, have sigmas between theirs.
///
/// # Errors
/// Fails for no steps or too many, and for a table that leaves nothing of the sample.
pub fn sigmas(process: &Process, num_steps: usize) -> anyhow::Result<Sigmas> {
    let mut timesteps: Vec<f64> = spacing::timesteps(&process.config, num_steps)?
        .into_iter()
        .map(|timestep| timestep as f64)
        .collect();
    if process.config.timestep_spacing == Spacing::Linspace {
        let last = process.config.num_train_timesteps - 1;
        let even = linspace(0.0, last as f64, num_steps); // the class rounds them to f32, not to integers
        timesteps = even.into_iter().rev().map(|at| f64::from(at as f32)).collect();
    }
    let table: Vec<f64> = process.alphas.all().iter().map(|alpha| sigma(*alpha)).collect();
    ensure!(
        table.iter().all(|sigma| sigma.is_finite() && *sigma > 0.0),
        "scheduler_config.json: the betas leave nothing of the sample, or none of the noise"
    );
    let mut sigmas: Vec<f32> = timesteps.iter().map(|at| interpolated(&table, *at) as f32).collect();
    sigmas.push(0.0);
    Ok(Sigmas { timesteps, sigmas })
}

/// sqrt((1 - a) / a)
fn sigma(alpha: f64) -> f64 {
    let alpha = alpha as f32;
    f64::from(((1.0 - alpha) / alpha).sqrt())
}

/// `numpy.interp` over a table of the places 0, 1, ...
fn interpolated(table: &[f64], at: f64) -> f64 {
    let last = table.len() - 1;
    let at = at.clamp(0.0, last as f64);
    let below = (at as usize).min(last);
    match table.get(below + 1) {
        Some(above) => (above - table[below]) * (at - below as f64) + table[below],
        None => table[below],
    }
}

/// Returns the standard deviation of the first sample: `init_noise_sigma`.
pub fn initial_sigma(process: &Process, sigmas: &[f32]) -> f32 {
    let most = sigmas.iter().copied().fold(0.0, f32::max);
    match process.config.timestep_spacing {
        Spacing::Linspace | Spacing::Trailing => most,
        Spacing::Leading => (most * most + 1.0).sqrt(),
    }
}

/// Returns the network's input for a sample of this sigma, in the sample's type: `scale_model_input`.
pub fn model_input(sigma: f32, sample: &Tensor) -> Result<Tensor> {
    sample / f64::from((sigma * sigma + 1.0).sqrt())
}

/// Returns the sample after one step from sigma `from` to sigma `to`, and the predicted clean sample.
///
/// # Errors
/// Fails without noise of the sample's shape.
pub fn step(
    process: &Process,
    [from, to]: [f32; 2],
    output: &Tensor,
    sample: &Tensor,
    noise: Option<&Tensor>,
) -> Result<Stepped> {
    let noise = noise.ok_or_else(|| Error::Msg("a step of ancestral sampling needs noise".into()))?;
    let (output, sample) = (output.to_dtype(DType::F32)?, sample.to_dtype(DType::F32)?);
    let original = match process.config.prediction_type {
        Prediction::Epsilon => (&sample - (output * f64::from(from))?)?,
        Prediction::Velocity => {
            let wide = from * from + 1.0;
            ((output * f64::from(-from / wide.sqrt()))? + (&sample / f64::from(wide))?)?
        }
        Prediction::Sample => output,
    };
    let up = (to * to * (from * from - to * to) / (from * from)).sqrt();
    let down = (to * to - up * up).sqrt();
    let direction = ((&sample - &original)? / f64::from(from))?;
    let sample = (sample + (direction * f64::from(down - from))?)?;
    let sample = (sample + (noise.to_dtype(DType::F32)? * f64::from(up))?)?;
    Ok(Stepped { sample, original })
}
