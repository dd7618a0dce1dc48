//! Exponential moving average of variables; equal to diffusers' `EMAModel` with its defaults.
//!
//! `average -= (1 - d) (average - variable)`, where d climbs to `decay`: the n-th update, from 0, uses 0 if n is 0 and
//! min(decay, (1 + n) / (10 + n)) after that. So a short run's average is not dominated by its first value.

use candle_core::{Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::in_place::{self, CHUNK, in_place};

/// Averages of a fixed list of variables.
#[derive(Debug)]
pub struct Ema {
    vars: Vec<Var>,
    decay: f64,
    updates: usize,
    averages: Vec<Tensor>,
}

/// State in a checkpoint.
#[derive(Debug, Clone)]
pub struct State {
    /// Completed updates.
    pub updates: usize,
    /// Average of each variable, in its shape.
    pub averages: Vec<Tensor>,
}

impl Ema {
    /// Starts at the variables' values.
    pub fn new(vars: Vec<Var>, decay: f64) -> Result<Self> {
        let averages = vars.iter().map(|var| var.as_detached_tensor().copy());
        Ok(Self {
            averages: averages.collect::<Result<_>>()?,
            vars,
            decay,
            updates: 0,
        })
    }

    /// Updates the averages with the current variables: to be called after each optimiser step.
    pub fn update(&mut self) -> Result<()> {
        let weight = 1.0 - self.decay_now();
        self.updates += 1;
        for (average, var) in self.averages.iter_mut().zip(&self.vars) {
            if in_place::possible(var) {
                in_place(average, var, |average, var| {
                    let both = average.par_chunks_mut(CHUNK).zip(var.par_chunks(CHUNK));
                    both.for_each(|(average, var)| approach(average, var, weight as f32));
                })?;
            } else {
                let missing = (&*average - var.as_detached_tensor())?;
                *average = (&*average - (missing * weight)?)?;
            }
        }
        Ok(())
    }

    /// Returns the averages, in the order of the variables. The next update changes them: `copy` what must stay.
    pub fn averages(&self) -> &[Tensor] {
        &self.averages
    }

    /// Returns a copy of the state.
    pub fn state(&self) -> Result<State> {
        Ok(State {
            updates: self.updates,
            averages: self.averages.iter().map(Tensor::copy).collect::<Result<_>>()?,
        })
    }

    /// Restores a state.
    ///
    /// # Errors
    /// Fails for averages of other variables, by number or shape; nothing is changed then.
    pub fn restore(&mut self, state: State) -> Result<()> {
        if state.averages.len() != self.vars.len() {
            bail!(
                "averages of {} variables, but there are {}",
                state.averages.len(),
                self.vars.len()
            );
        }
        let both = self.vars.iter().zip(&state.averages).enumerate();
        let averages = both.map(|(i, (var, average))| {
            if average.dims() != var.dims() {
                bail!("average {i} is {:?}, its variable {:?}", average.dims(), var.dims());
            }
            average.to_device(var.device())?.to_dtype(var.dtype())?.copy()
        });
        self.averages = averages.collect::<Result<_>>()?;
        self.updates = state.updates;
        Ok(())
    }

    fn decay_now(&self) -> f64 {
        let n = self.updates as f64;
        if self.updates == 0 {
            return 0.0;
        }
        self.decay.min((1.0 + n) / (10.0 + n))
    }
}

fn approach(average: &mut [f32], var: &[f32], weight: f32) {
    for (average, var) in average.iter_mut().zip(var) {
        *average -= weight * (*average - var);
    }
}
