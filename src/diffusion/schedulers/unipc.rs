//! One step of the predictor and corrector UniPC, as in `UniPCMultistepScheduler`.  arXiv:2302.04867
//!
//! With l = log((1 - s) / s) of the step (l0), of its end (l'), h = l' - l0, and x0_i the clean sample predicted i
//! steps ago, D_i = (x0_i - x0_0) / r_i with r_i = (l_i - l0) / h:
//!
//! x' = s'/s x - (1 - s') (e^-h - 1) x0_0 - (1 - s') B (sum of p_i D_i)
//!
//! The predictor uses previous steps. After the network has run at x', the corrector repeats the step from the previous
//! sample with that prediction among the D. The weights p solve sum of p_i r_i^k = b_k.
//!
//! Without the corrector, at the second order and with B = e^-h - 1, this is DPM-Solver++(2M) by its midpoint rule, as in
//! `DPMSolverMultistepScheduler`  (arXiv:2211.01095).
//!
//! torch computes all of the scalars in f32, and some of them cancel; so do we, value by value.

use candle_core::{DType, Result, Tensor};

use super::Stepped;
use super::config::unipc::{Config, SolverType};

/// State of the previous steps.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The last predicted clean samples, the newest last; `solver_order` of them at most.
    originals: Vec<Tensor>,
    /// Start of the last step, and its order.
    last: Option<(Tensor, usize)>,
    /// Steps taken, counted up to the solver's order.
    taken: usize,
    /// True for a solver that predicts alone.
    only_predicts: bool,
}

/// Coefficients of one step, predicted or corrected.
struct Weights {
    /// Coefficients of the sample, of the newest x0, and of the sum of D.
    sample: f32,
    original: f32,
    residual: f32,
    /// r of the previous steps, the newest first.
    ratios: Vec<f32>,
    /// One equation each: powers of r, the last column's r being 1, and b.
    rows: Vec<Vec<f32>>,
    b: Vec<f32>,
}

impl History {
    /// History of a solver that predicts alone.
    pub fn without_corrector() -> Self {
        Self {
            only_predicts: true,
            ..Self::default()
        }
    }

    /// Takes the step `at` from `sample`, given the network's `output` there.
    ///
    /// `sigmas` are those of the whole run, including the one after the last step.
    pub fn step(
        &mut self,
        config: &Config,
        sigmas: &[f32],
        at: usize,
        output: &Tensor,
        sample: &Tensor,
    ) -> Result<Stepped> {
        let (output, sample) = (output.to_dtype(DType::F32)?, sample.to_dtype(DType::F32)?);
        let original = (&sample - (output * f64::from(sigmas[at]))?)?;
        let corrects = |before: usize| !self.only_predicts && !config.disable_corrector.contains(&before);
        let sample = match self.last.take().filter(|_| at > 0 && corrects(at - 1)) {
            Some((before, order)) => self.correct(config, sigmas, at, &before, &original, order)?,
            None => sample,
        };
        if self.originals.len() == config.solver_order {
            self.originals.remove(0);
        }
        self.originals.push(original.clone());

        let left = sigmas.len() - 1 - at;
        let order = config.solver_order.min(left).min(self.taken + 1);
        let next = self.predict(config, sigmas, at, &sample, order)?;
        self.last = Some((sample, order));
        self.taken = (self.taken + 1).min(config.solver_order);
        Ok(Stepped { sample: next, original })
    }

    /// UniP: returns the end of the step `at` from `sample`.
    fn predict(&self, config: &Config, sigmas: &[f32], at: usize, sample: &Tensor, order: usize) -> Result<Tensor> {
        let before: Vec<f32> = (1..order).map(|i| sigmas[at - i]).collect();
        let weights = Weights::new(config.solver_type, [sigmas[at], sigmas[at + 1]], &before);
        let shares = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => {
                let rows = weights.rows[..order - 1].iter().map(|row| row[..order - 1].to_vec());
                solve(rows.collect(), weights.b[..order - 1].to_vec())
            }
        };
        let residual = self.residual(&weights, &shares)?;
        weights.combine(sample, self.newest()?, residual)
    }

    /// UniC: repeats the step before `at`, from the sample `before` it, with the newly predicted `original`.
    fn correct(
        &self,
        config: &Config,
        sigmas: &[f32],
        at: usize,
        before: &Tensor,
        original: &Tensor,
        order: usize,
    ) -> Result<Tensor> {
        let earlier: Vec<f32> = (1..order).map(|i| sigmas[at - (i + 1)]).collect();
        let weights = Weights::new(config.solver_type, [sigmas[at - 1], sigmas[at]], &earlier);
        let shares = match order {
            1 => vec![0.5],
            _ => solve(weights.rows.clone(), weights.b.clone()),
        };
        let newest = self.newest()?;
        let own = ((original - newest)? * f64::from(shares[order - 1]))?;
        let residual = match self.residual(&weights, &shares[..order - 1])? {
            Some(residual) => (residual + own)?,
            None => own,
        };
        weights.combine(before, newest, Some(residual))
    }

    /// Returns the sum of p_i D_i; None without previous steps.
    fn residual(&self, weights: &Weights, shares: &[f32]) -> Result<Option<Tensor>> {
        let newest = self.newest()?;
        let mut sum: Option<Tensor> = None;
        let earlier = self.originals.iter().rev().skip(1);
        for ((original, ratio), share) in earlier.zip(&weights.ratios).zip(shares) {
            let difference = ((original - newest)? / f64::from(*ratio))?;
            let term = (difference * f64::from(*share))?;
            sum = Some(match sum {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        Ok(sum)
    }

    fn newest(&self) -> Result<&Tensor> {
        let missing = || candle_core::Error::Msg("a step of UniPC has nothing to go by".into());
        self.originals.last().ok_or_else(missing)
    }
}

impl Weights {
    /// Coefficients of a step between two sigmas, with those of the previous steps, the newest first.
    fn new(kind: SolverType, [from, to]: [f32; 2], before: &[f32]) -> Self {
        let lambda = |sigma: f32| (1.0 - sigma).ln() - sigma.ln();
        let start = lambda(from);
        let h = lambda(to) - start;
        let ratios: Vec<f32> = before.iter().map(|sigma| (lambda(*sigma) - start) / h).collect();

        let back = -h;
        let phi = back.exp_m1();
        let scale = match kind {
            SolverType::Bh1 => back,
            SolverType::Bh2 => phi,
        };
        let order = before.len() + 1;
        let (mut rows, mut b) = (Vec::new(), Vec::new());
        let mut remainder = phi / back - 1.0;
        let mut factorial = 1.0;
        for power in 0..order {
            let all = ratios.iter().copied().chain([1.0]);
            rows.push(all.map(|ratio: f32| ratio.powi(power as i32)).collect());
            b.push(remainder * factorial / scale);
            factorial *= (power + 2) as f32;
            remainder = remainder / back - 1.0 / factorial;
        }
        let left = 1.0 - to;
        Self {
            sample: to / from,
            original: left * phi,
            residual: left * scale,
            ratios,
            rows,
            b,
        }
    }

    fn combine(&self, sample: &Tensor, original: &Tensor, residual: Option<Tensor>) -> Result<Tensor> {
        let straight = ((sample * f64::from(self.sample))? - (original * f64::from(self.original))?)?;
        match residual {
            Some(residual) => straight - (residual * f64::from(self.residual))?,
            None => Ok(straight),
        }
    }
}

/// Solves rows x = b by elimination with pivots.
fn solve(mut rows: Vec<Vec<f32>>, mut b: Vec<f32>) -> Vec<f32> {
    let n = b.len();
    for column in 0..n {
        let largest = |i: &usize, j: &usize| rows[*i][column].abs().total_cmp(&rows[*j][column].abs());
        let pivot = (column..n).max_by(largest).unwrap_or(column);
        rows.swap(column, pivot);
        b.swap(column, pivot);
        for below in column + 1..n {
            let factor = rows[below][column] / rows[column][column];
            let (above, rest) = rows.split_at_mut(below);
            for (number, pivot) in rest[0].iter_mut().zip(&above[column]).skip(column) {
                *number -= factor * pivot;
            }
            b[below] -= factor * b[column];
        }
    }
    for row in (0..n).rev() {
        let known: f32 = (row + 1..n).map(|k| rows[row][k] * b[k]).sum();
        b[row] = (b[row] - known) / rows[row][row];
    }
    b
}
