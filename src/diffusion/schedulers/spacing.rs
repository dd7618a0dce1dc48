//! Timesteps of a run, from the noisiest on: `set_timesteps` of diffusers' CogVideoX schedulers.
//!
//! With T training timesteps and N steps, numpy's rounding (half to even): `linspace` round(i (T - 1) / (N - 1)),
//! `leading` i floor(T / N) + offset, `trailing` round(T - i T / N) - 1.
//!
//! Trailing timesteps come from numpy's `arange` with a fractional step, which for some N (61, 103, 121, ...) has one
//! value too many: N + 1 of them, the last being -1. Kept, because the pipelines sample with it.

use anyhow::ensure;

use super::config::ddpm::{Config, Spacing};

/// Returns the timesteps of a run of `num_steps`, in descending order.
///
/// # Errors
/// Fails for no steps, more steps than timesteps, and an offset beyond the last timestep.
pub fn timesteps(config: &Config, num_steps: usize) -> anyhow::Result<Vec<i64>> {
    let num_train = config.num_train_timesteps;
    ensure!(
        (1..=num_train).contains(&num_steps),
        "the number of steps must be within 1 and {num_train} (num_train_timesteps), got {num_steps}"
    );
    let timesteps: Vec<i64> = match config.timestep_spacing {
        Spacing::Linspace => {
            let width = (num_train - 1) as f64 / (num_steps - 1).max(1) as f64;
            let round = |i: usize| (i as f64 * width).round_ties_even() as i64;
            (0..num_steps).rev().map(round).collect()
        }
        Spacing::Leading => {
            let width = num_train / num_steps;
            let timestep = |i: usize| (i * width + config.steps_offset) as i64;
            (0..num_steps).rev().map(timestep).collect()
        }
        Spacing::Trailing => trailing(num_train as f64, num_steps as f64),
    };
    ensure!(
        timesteps[0] < num_train as i64,
        "steps_offset: {} leads {num_steps} steps beyond the last timestep {}",
        config.steps_offset,
        num_train - 1
    );
    Ok(timesteps)
}

/// `round(arange(T, 0, -T / N)) - 1`
fn trailing(num_train: f64, num_steps: f64) -> Vec<i64> {
    let width = num_train / num_steps;
    let count = (num_train / width).ceil() as usize;
    let step = (num_train - width) - num_train; // numpy takes the difference of the first two values
    let timestep = |i: usize| (num_train + i as f64 * step).round_ties_even() as i64 - 1;
    (0..count).map(timestep).collect()
}

/// Returns how many of `num_steps` steps video-to-video skips: N - min(floor(N strength), N).
///
/// The run starts from the clip with the noise of the first remaining timestep.
///
/// # Errors
/// Fails for a strength outside of 0..=1, or one so small that no step remains.
pub fn skipped(num_steps: usize, strength: f64) -> anyhow::Result<usize> {
    ensure!(
        (0.0..=1.0).contains(&strength),
        "the strength must be within 0 and 1, got {strength}"
    );
    let kept = ((num_steps as f64 * strength) as usize).min(num_steps);
    ensure!(
        kept > 0,
        "a strength of {strength} leaves none of {num_steps} steps; raise either"
    );
    Ok(num_steps - kept)
}
