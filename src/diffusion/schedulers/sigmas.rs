//! Sigmas of a flow matching run, between noise (sigma = 1) and sample (0): `set_timesteps` of
//! `FlowMatchEulerDiscreteScheduler`, `UniPCMultistepScheduler` and `DPMSolverMultistepScheduler`.
//!
//! x(sigma) = sigma n + (1 - sigma) x0. Even sigmas are shifted towards the noise, s <- k s / (1 + (k - 1) s) with a
//! fixed k, or s <- m / (m + 1 / s - 1) with m = mu or e^mu by the length of the sequence (arXiv:2403.03206); then
//! stretched to end at `shift_terminal`; then spaced anew between the first and the last.
//!
//! numpy computes in f32 if it starts from a pipeline's sigmas and in f64 if it starts from its own; so do we, value by
//! value.

use anyhow::{bail, ensure};

use super::config::flow_match_euler::{self, TimeShift};
use super::config::unipc::{self, FinalSigma};

/// Spacing of a run's steps by a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StepSpacing {
    /// The scheduler's own, by the number of steps and perhaps the length of the sequence: [`euler`](fn@euler), [`unipc`](fn@unipc).
    #[default]
    OfScheduler,
    /// Short steps of one width near the noise, then ever longer ones: [`linear_quadratic`].
    LinearQuadratic,
}

/// Steps that a request lists, from noise to sample.
#[derive(Debug, Clone, PartialEq)]
pub enum StepList {
    /// Sigmas, which the scheduler shifts as it shifts its own.
    Sigmas(Vec<f64>),
    /// Timesteps as the network takes them, to which nothing is applied.
    Timesteps(Vec<f64>),
}

/// Sigmas and timesteps of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Sigmas {
    /// Timesteps as the network takes them.
    pub timesteps: Vec<f64>,
    /// Sigma of each step, and of the end of the last one.
    pub sigmas: Vec<f32>,
}

type Round = fn(f64) -> f64;

fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

fn double(x: f64) -> f64 {
    x
}

/// Returns the sigmas of `FlowMatchEulerDiscreteScheduler`.
///
/// Given the sequence length in tokens, as the LTX pipelines do: the sigmas 1 ... 1/N with the shift of that length.
/// Without it, for pipelines that pass the number of steps alone: the class then takes the training sigmas, which are
/// shifted already, and shifts them once more.
///
/// # Errors
/// Fails for no steps or too many, a dynamic shift without a length, and settings under which sigmas do not descend.
pub fn euler(config: &flow_match_euler::Config, num_steps: usize, seq_len: Option<usize>) -> anyhow::Result<Sigmas> {
    check_count(num_steps, config.num_train_timesteps)?;
    let (evenly, round): (Vec<f64>, Round) = match seq_len {
        Some(_) => (even(num_steps).into_iter().map(single).collect(), single),
        None => (trained(config, num_steps), double),
    };
    finished(config, &evenly, round, seq_len)
}

/// Returns the sigmas 1 ... 1/N, which pipelines pass.
pub fn even(num_steps: usize) -> Vec<f64> {
    linspace(1.0, 1.0 / num_steps as f64, num_steps)
}

/// Same for sigmas that a request gives, from noise to sample; they are shifted like all others.
///
/// # Errors
/// Fails for no sigmas, and for sigmas that do not descend within 1 and 0.
pub fn given(config: &flow_match_euler::Config, sigmas: &[f64], seq_len: Option<usize>) -> anyhow::Result<Sigmas> {
    check_sigmas(sigmas)?;
    let sigmas: Vec<f64> = sigmas.iter().copied().map(single).collect();
    finished(config, &sigmas, single, seq_len)
}

/// Returns the sigmas of timesteps that a request gives: their shares of `num_train`, without a shift.
///
/// # Errors
/// Fails for no timesteps, and for timesteps that do not descend within `num_train` and 0.
pub fn of_timesteps(timesteps: &[f64], num_train: usize) -> anyhow::Result<Sigmas> {
    let most = num_train as f64;
    ensure!(
        descend(timesteps, most),
        "timesteps must descend from {most} (noise) at most to above 0, such as 1000, 750, 500, 250; got {timesteps:?}"
    );
    let shares = timesteps.iter().map(|timestep| (timestep / most) as f32);
    Ok(Sigmas {
        timesteps: timesteps.to_vec(),
        sigmas: shares.chain([0.0]).collect(),
    })
}

/// Returns the sigmas that `MochiPipeline` passes to its scheduler (`linear_quadratic_schedule` with a `threshold_noise` of
/// THRESHOLD): in the first half of the steps the sample's share grows evenly to THRESHOLD, then as a parabola to 1 at the end
/// of the last one.
///
/// # Errors
/// Fails for no steps and more than `num_train`.
pub fn linear_quadratic(num_steps: usize, num_train: usize) -> anyhow::Result<Vec<f64>> {
    const THRESHOLD: f64 = 0.025;
    check_count(num_steps, num_train)?;
    if num_steps == 1 {
        return Ok(vec![1.0]); // diffusers divides by its half, 0
    }
    let (steps, linear) = (num_steps as f64, (num_steps / 2) as f64);
    let (quadratic, rest) = (steps - linear, linear - THRESHOLD * steps);
    let square = rest / (linear * quadratic.powi(2));
    let slope = THRESHOLD / linear - 2.0 * rest / quadratic.powi(2);
    let first = square * linear.powi(2);
    let share = |at: usize| match at < num_steps / 2 {
        true => at as f64 * THRESHOLD / linear,
        false => square * (at * at) as f64 + slope * at as f64 + first,
    };
    Ok((0..num_steps).map(|at| 1.0 - share(at)).collect())
}

/// Shifts sigmas, and adds the last one and the timesteps.
fn finished(
    config: &flow_match_euler::Config,
    even: &[f64],
    round: Round,
    seq_len: Option<usize>,
) -> anyhow::Result<Sigmas> {
    let (num_train, num_steps) = (config.num_train_timesteps as f64, even.len());
    let mut sigmas = match (config.use_dynamic_shifting, seq_len) {
        (false, _) => shifted(even, config.shift, round),
        (true, Some(length)) => time_shifted(even, config.mu(length), config.time_shift_type, round),
        (true, None) => {
            bail!("use_dynamic_shifting: needs the length of the sequence, which this pipeline does not pass")
        }
    };
    stretch(&mut sigmas, config.shift_terminal, round)?;
    let (first, last) = (sigmas[0], sigmas[num_steps - 1]);
    if config.use_karras_sigmas {
        sigmas = karras(first, last, num_steps);
    } else if config.use_exponential_sigmas {
        let even = linspace(first.ln(), last.ln(), num_steps);
        sigmas = even.into_iter().map(f64::exp).collect();
    }
    let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
    check_descent(&sigmas)?;
    if config.invert_sigmas {
        sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - *sigma);
    }
    let timesteps = sigmas.iter().map(|sigma| f64::from(sigma * num_train as f32)).collect();
    sigmas.push(if config.invert_sigmas { 1.0 } else { 0.0 });
    Ok(Sigmas { timesteps, sigmas })
}

/// Returns the sigmas of `UniPCMultistepScheduler` with `use_flow_sigmas`; its timesteps are integers.
///
/// # Errors
/// Fails for no steps or too many, and settings under which sigmas do not descend.
pub fn unipc(config: &unipc::Config, num_steps: usize) -> anyhow::Result<Sigmas> {
    let num_train = config.num_train_timesteps;
    check_count(num_steps, num_train)?;
    let mut even = linspace(1.0, 1.0 / num_train as f64, num_steps + 1);
    even.pop();
    multistep(config, &even)
}

/// Same for sigmas that a request or a pipeline gives, from noise to sample; they are shifted like all others.
///
/// # Errors
/// Fails for no sigmas, and for sigmas that do not descend within 1 and 0.
pub fn unipc_given(config: &unipc::Config, sigmas: &[f64]) -> anyhow::Result<Sigmas> {
    check_sigmas(sigmas)?;
    multistep(config, sigmas)
}

/// Same for timesteps that a request gives, without a shift; see [`of_timesteps`].
pub fn unipc_timesteps(config: &unipc::Config, timesteps: &[f64]) -> anyhow::Result<Sigmas> {
    let mut listed = of_timesteps(timesteps, config.num_train_timesteps)?;
    listed.sigmas[0] = off_one(f64::from(listed.sigmas[0])) as f32;
    if config.final_sigmas_type == FinalSigma::SigmaMin {
        listed.sigmas[timesteps.len()] = listed.sigmas[timesteps.len() - 1];
    }
    Ok(listed)
}

/// Returns the sigmas of `DPMSolverMultistepScheduler` with `use_flow_sigmas`: even ones between 1 - 1/T and 0.
///
/// # Errors
/// Same as [`unipc`](fn@unipc).
pub fn dpm_solver(config: &unipc::Config, num_steps: usize) -> anyhow::Result<Sigmas> {
    let num_train = config.num_train_timesteps;
    check_count(num_steps, num_train)?;
    let kept = linspace(1.0, 1.0 / num_train as f64, num_steps + 1);
    let even: Vec<f64> = kept[1..].iter().rev().map(|kept| 1.0 - kept).collect();
    multistep(config, &even)
}

/// Returns this sigma, or a little less in place of 1, where the logarithm of the sample's share would be infinite.
fn off_one(sigma: f64) -> f64 {
    const OFF_ONE: f64 = 1e-6;
    match (sigma - 1.0).abs() < OFF_ONE {
        true => sigma - OFF_ONE,
        false => sigma,
    }
}

/// Shifts the sigmas of a multistep solver, and adds the last one and the timesteps, integers.
fn multistep(config: &unipc::Config, even: &[f64]) -> anyhow::Result<Sigmas> {
    let (num_train, num_steps) = (config.num_train_timesteps as f64, even.len());
    let mut sigmas = shifted(even, config.flow_shift, double);
    stretch(&mut sigmas, config.shift_terminal, double)?;
    sigmas[0] = off_one(sigmas[0]);
    let timesteps = sigmas.iter().map(|sigma| (sigma * num_train).trunc()).collect();
    let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
    check_descent(&sigmas)?;
    sigmas.push(match config.final_sigmas_type {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => sigmas[num_steps - 1],
    });
    Ok(Sigmas { timesteps, sigmas })
}

/// Returns the class's default sigmas: even between the largest and the smallest in training.
fn trained(config: &flow_match_euler::Config, num_steps: usize) -> Vec<f64> {
    let num_train = config.num_train_timesteps as f64;
    let of_training = |timestep: f64| match config.use_dynamic_shifting {
        true => single(timestep / num_train),
        false => shifted(&[single(timestep / num_train)], config.shift, single)[0],
    };
    let (max, min) = (of_training(num_train), of_training(1.0));
    let timesteps = linspace(max * num_train, min * num_train, num_steps);
    timesteps.into_iter().map(|timestep| timestep / num_train).collect()
}

/// k s / (1 + (k - 1) s)
fn shifted(sigmas: &[f64], shift: f64, round: Round) -> Vec<f64> {
    let (factor, less) = (round(shift), round(shift - 1.0));
    let shift = |sigma: &f64| round(round(factor * sigma) / round(1.0 + round(less * sigma)));
    sigmas.iter().map(shift).collect()
}

/// m / (m + 1 / s - 1), with the last two terms added first.
fn time_shifted(sigmas: &[f64], mu: f64, kind: TimeShift, round: Round) -> Vec<f64> {
    let m = match kind {
        TimeShift::Exponential => round(mu.exp()),
        TimeShift::Linear => round(mu),
    };
    let shift = |sigma: &f64| round(m / round(m + round(round(1.0 / sigma) - 1.0)));
    sigmas.iter().map(shift).collect()
}

/// 1 - (1 - s) (1 - terminal) / (1 - s_last)
fn stretch(sigmas: &mut [f64], terminal: Option<f64>, round: Round) -> anyhow::Result<()> {
    let Some(terminal) = terminal.filter(|terminal| *terminal != 0.0) else {
        return Ok(());
    };
    let last = sigmas.last().copied().unwrap_or(1.0);
    ensure!(
        last < 1.0,
        "shift_terminal: {terminal} cannot be reached in {} steps; take more",
        sigmas.len()
    );
    let scale = round(round(1.0 - last) / round(1.0 - terminal));
    for sigma in sigmas {
        *sigma = round(1.0 - round(round(1.0 - *sigma) / scale));
    }
    Ok(())
}

/// Equation 5 of arXiv:2206.00364.
fn karras(first: f64, last: f64, num_steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (from, to) = (first.powf(1.0 / RHO), last.powf(1.0 / RHO));
    let ramp = linspace(0.0, 1.0, num_steps);
    ramp.into_iter().map(|at| (from + at * (to - from)).powf(RHO)).collect()
}

/// `numpy.linspace`
pub(super) fn linspace(start: f64, end: f64, num: usize) -> Vec<f64> {
    let step = (end - start) / (num - 1).max(1) as f64;
    let mut values: Vec<f64> = (0..num).map(|i| i as f64 * step + start).collect();
    if num > 1 {
        values[num - 1] = end;
    }
    values
}

fn check_count(num_steps: usize, num_train: usize) -> anyhow::Result<()> {
    ensure!(
        (1..=num_train).contains(&num_steps),
        "the number of steps must be within 1 and {num_train} (num_train_timesteps), got {num_steps}"
    );
    Ok(())
}

/// Checks sigmas that a request gives.
fn check_sigmas(sigmas: &[f64]) -> anyhow::Result<()> {
    ensure!(
        descend(sigmas, 1.0),
        "sigmas must descend from 1 (noise) at most to above 0, such as 1, 0.6, 0.3; got {sigmas:?}"
    );
    Ok(())
}

/// Returns true for numbers that descend from `most` at most to above 0.
fn descend(numbers: &[f64], most: f64) -> bool {
    !numbers.is_empty()
        && numbers.iter().all(|number| *number > 0.0 && *number <= most)
        && numbers.windows(2).all(|pair| pair[0] > pair[1])
}

/// Checks that sigmas descend: a step of width 0 divides by 0.
fn check_descent(sigmas: &[f32]) -> anyhow::Result<()> {
    const ROUNDING: f32 = 1e-6;
    let within = sigmas.iter().all(|sigma| *sigma > 0.0 && *sigma <= 1.0 + ROUNDING);
    ensure!(
        within && sigmas.windows(2).all(|pair| pair[0] > pair[1]),
        "the scheduler's shift leaves {} steps that do not descend from noise to sample; take fewer, or a smaller shift \
         in scheduler_config.json",
        sigmas.len()
    );
    Ok(())
}
