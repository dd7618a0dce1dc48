//! Share of the clean sample left at each timestep: a(t) = prod over s <= t of (1 - beta(s)).
//!
//! Then, as in the CogVideoX schedulers of diffusers: a <- a / (k + (1 - k) a) with k = `snr_shift_scale`, and, for
//! `rescale_betas_zero_snr`, sqrt(a) is shifted and scaled such that its last value is 0 and its first is unchanged
//! (algorithm 1 of arXiv:2305.08891).
//!
//! torch computes this in f64 for `scaled_linear` betas and in f32 for all others, and other schedulers' tables in f32; so
//! do we, value by value.

use candle_core::Result;

use super::config::ddpm::{BetaSchedule, Config};

/// a(t) for every timestep, and after the last.
#[derive(Debug, Clone)]
pub struct Alphas {
    cumprod: Vec<f64>,
    /// Value of a(t) at timesteps below 0.
    last: f64,
}

impl Alphas {
    /// Cumulative products of a schedule's `1 - beta`.
    pub fn new(config: &Config) -> Self {
        let double = config.trained_betas.is_none() && config.beta_schedule == BetaSchedule::ScaledLinear;
        match double {
            true => Self::rounded(config, |x| x),
            false => Self::in_f32(config),
        }
    }

    /// The same, computed in f32 whatever the schedule.
    pub fn in_f32(config: &Config) -> Self {
        Self::rounded(config, |x| f64::from(x as f32))
    }

    fn rounded(config: &Config, round: fn(f64) -> f64) -> Self {
        let shift = round(config.snr_shift_scale);
        let mut product = 1.0; // torch's cumprod keeps f64 inside, even for f32
        let mut cumprod: Vec<f64> = betas(config, round)
            .into_iter()
            .map(|beta| {
                product *= round(1.0 - beta);
                let alpha = round(product);
                round(alpha / round(shift + round(round(1.0 - config.snr_shift_scale) * alpha)))
            })
            .collect();
        if config.rescale_betas_zero_snr {
            rescale_to_zero_snr(&mut cumprod, round);
        }
        let last = if config.set_alpha_to_one { 1.0 } else { cumprod[0] };
        Self { cumprod, last }
    }

    /// Returns a(t).
    ///
    /// Timestep -1, the end of the run for a few step counts (see `spacing`), counts from the end, like torch's
    /// indices.
    ///
    /// # Errors
    /// Fails if there is no such timestep.
    pub fn at(&self, timestep: i64) -> Result<f64> {
        let num = self.cumprod.len();
        let index = if timestep == -1 { num as i64 - 1 } else { timestep };
        usize::try_from(index)
            .ok()
            .and_then(|index| self.cumprod.get(index))
            .copied()
            .ok_or_else(|| candle_core::Error::Msg(format!("timestep {timestep} is not below {num}")))
    }

    /// Returns a at the end of a step from `timestep` in a run of `num_steps`, and whether that is still a timestep.
    ///
    /// All steps are equally wide, so the end need not be the next timestep of the run.
    pub fn after(&self, timestep: i64, num_steps: usize) -> Result<(f64, bool)> {
        let width = self.cumprod.len() / num_steps.max(1);
        let target = timestep - width as i64;
        if target < 0 {
            return Ok((self.last, false));
        }
        Ok((self.at(target)?, true))
    }

    /// Returns a(t) of timesteps 0, 1, ...
    pub fn all(&self) -> &[f64] {
        &self.cumprod
    }
}

fn betas(config: &Config, round: fn(f64) -> f64) -> Vec<f64> {
    let num = config.num_train_timesteps;
    if let Some(betas) = &config.trained_betas {
        return betas.iter().map(|beta| round(*beta)).collect();
    }
    match config.beta_schedule {
        BetaSchedule::Linear => linspace(config.beta_start, config.beta_end, num, round),
        BetaSchedule::ScaledLinear => linspace(config.beta_start.sqrt(), config.beta_end.sqrt(), num, round)
            .into_iter()
            .map(|root| round(root * root))
            .collect(),
        BetaSchedule::SquaredcosCapV2 => {
            let bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
            let at = |i: usize| bar(i as f64 / num as f64);
            (0..num).map(|i| round((1.0 - at(i + 1) / at(i)).min(0.999))).collect()
        }
    }
}

/// `torch.linspace`: computed from the nearer end.
fn linspace(start: f64, end: f64, num: usize, round: fn(f64) -> f64) -> Vec<f64> {
    let (start, end) = (round(start), round(end));
    let step = if num > 1 {
        round(round(end - start) / (num - 1) as f64)
    } else {
        0.0
    };
    (0..num)
        .map(|i| {
            if i < num / 2 || num == 1 {
                round(start + round(step * i as f64))
            } else {
                round(end - round(step * (num - 1 - i) as f64))
            }
        })
        .collect()
}

fn rescale_to_zero_snr(cumprod: &mut [f64], round: fn(f64) -> f64) {
    let roots: Vec<f64> = cumprod.iter().map(|alpha| round(alpha.sqrt())).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let factor = round(first / round(first - last));
    for (alpha, root) in cumprod.iter_mut().zip(roots) {
        let root = round(round(root - last) * factor);
        *alpha = round(root * root);
    }
}
