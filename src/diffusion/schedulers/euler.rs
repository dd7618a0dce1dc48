//! One step of Euler's method, as in `FlowMatchEulerDiscreteScheduler`.  arXiv:2210.02747
//!
//! The network predicts v = n - x0, so x0 = x - s v, and x' = x + (s' - s) v with s of the step and s' of its end.
//! Stochastic sampling instead mixes x0 with fresh noise: x' = (1 - s') x0 + s' n.

use candle_core::{DType, Error, Result, Tensor};

use super::Stepped;
use super::config::flow_match_euler::Config;

/// Returns the sample after one step from sigma `from` to sigma `to`, and the predicted clean sample.
///
/// # Errors
/// Fails for stochastic sampling without noise of the sample's shape.
pub fn step(
    config: &Config,
    [from, to]: [f32; 2],
    output: &Tensor,
    sample: &Tensor,
    noise: Option<&Tensor>,
) -> Result<Stepped> {
    let (output, sample) = (output.to_dtype(DType::F32)?, sample.to_dtype(DType::F32)?);
    // Inverted, time and the velocity run from noise to sample.
    let share = if config.invert_sigmas { from - 1.0 } else { from };
    let original = (&sample - (&output * f64::from(share))?)?;
    let sample = match config.stochastic_sampling {
        false => (sample + (output * f64::from(to - from))?)?,
        true => {
            let noise = noise.ok_or_else(|| Error::Msg("a step of stochastic sampling needs noise".into()))?;
            ((&original * f64::from(1.0 - to))? + (noise.to_dtype(DType::F32)? * f64::from(to))?)?
        }
    };
    Ok(Stepped { sample, original })
}
