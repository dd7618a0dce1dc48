//! AdamW: Adam with decoupled weight decay.  arXiv:1711.05101, equal to `torch.optim.AdamW`.
//!
//! With the gradient g, its moments m and v, and t counting steps from 1:
//!
//! ```text
//! m = m + (1 - beta1) (g - m)
//! v = beta2 v + (1 - beta2) g^2
//! p = (1 - lr weight_decay) p - lr / (1 - beta1^t)  m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//! ```
//!
//! f32 variables are updated in a single pass that reads and writes parameter, gradient and moments once; on a GPU
//! (feature `cuda`) in one launch for all. Other types use candle's own operations. Each element depends on its own
//! past only, so the result does not depend on the threads.

use candle_core::{Result, Tensor, Var, bail};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::in_place::{self, CHUNK, in_place};
use super::launch;

use crate::problems::Problems;

/// `optimizer:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Optimiser.
    pub name: Name,
    /// Learning rate at the top of the schedule.
    pub lr: f64,
    /// Decay of the gradient's running average.
    pub beta1: f64,
    /// Decay of the squared gradient's running average.
    pub beta2: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// Number added to the root of the second moment.
    pub epsilon: f64,
    /// Decay of an exponential moving average of the adapters (0.999, say), which the final adapter file then holds.
    pub ema: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: Name::Adamw,
            lr: 3e-5,
            beta1: 0.9,
            beta2: 0.95,
            weight_decay: 1e-4,
            epsilon: 1e-8,
            ema: None,
        }
    }
}

impl Config {
    /// Checks for values that parse but make no sense, by path below `optimizer`.
    pub fn check(&self, problems: &mut Problems) {
        problems.above_zero("lr", self.lr);
        problems.above_zero("epsilon", self.epsilon);
        problems.below_one("beta1", self.beta1);
        problems.below_one("beta2", self.beta2);
        if self.weight_decay < 0.0 {
            problems.push("weight_decay", format!("must be at least 0, got {}", self.weight_decay));
        }
        if let Some(decay) = self.ema {
            problems.below_one("ema", decay);
        }
    }

    /// Returns the factors of step `step`, counted from 1, as a GPU takes them. Gradients are multiplied by `scale`
    /// first.
    pub fn update(&self, step: usize, scale: f64, lr: f64) -> launch::Update {
        Update::new(self, step, scale, lr).on_gpu()
    }
}

/// Optimisers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// Adam with decoupled weight decay (arXiv:1711.05101).
    Adamw,
}

/// AdamW over a fixed list of variables.
#[derive(Debug)]
pub struct AdamW {
    vars: Vec<Var>,
    config: Config,
    /// Completed steps.
    step: usize,
    moments: Vec<MomentStorage>,
}

/// State in a checkpoint, named as in torch's `state_dict`.
#[derive(Debug, Clone)]
pub struct State {
    /// Completed steps.
    pub step: usize,
    /// Moments of each variable, in its shape.
    pub moments: Vec<Moments>,
}

/// Running averages of a variable's gradient and of its square.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Running average of the gradient, in the variable's shape.
    pub exp_avg: Tensor,
    /// Running average of the squared gradient, in the variable's shape.
    pub exp_avg_sq: Tensor,
}

/// Storage of the moments: plain numbers for the single pass, tensors for candle's operations.
#[derive(Debug)]
enum MomentStorage {
    Plain { exp_avg: Vec<f32>, exp_avg_sq: Vec<f32> },
    Tensors(Moments),
}

impl AdamW {
    /// Starts at step 0 with moments of zero.
    pub fn new(vars: Vec<Var>, config: &Config) -> Result<Self> {
        let moments = vars
            .iter()
            .map(|var| MomentStorage::zeros(var))
            .collect::<Result<_>>()?;
        Ok(Self {
            vars,
            config: config.clone(),
            step: 0,
            moments,
        })
    }

    /// Updates every variable by its gradient.
    ///
    /// `gradients` come in the order of the variables; each is multiplied by `scale` (see [`super::clip`]) first.
    ///
    /// # Errors
    /// Fails for another number of gradients than of variables, or one of another shape; nothing is updated then.
    pub fn step(&mut self, gradients: &[Tensor], scale: f64, lr: f64) -> Result<()> {
        if gradients.len() != self.vars.len() {
            bail!("{} gradients for {} variables", gradients.len(), self.vars.len());
        }
        for (i, (var, gradient)) in self.vars.iter().zip(gradients).enumerate() {
            if var.dims() != gradient.dims() {
                bail!("gradient {i} is {:?}, its variable {:?}", gradient.dims(), var.dims());
            }
        }
        self.step += 1;
        let update = Update::new(&self.config, self.step, scale, lr);
        #[cfg(feature = "cuda")]
        if self.vars.iter().all(|var| super::cuda::possible(var)) && !self.vars.is_empty() {
            return self.step_on(gradients, &update);
        }
        if self.vars.iter().all(|var| var.device().is_cpu()) {
            let all = self.vars.par_iter().zip(gradients).zip(&mut self.moments);
            all.try_for_each(|((var, gradient), moments)| update.apply(var, gradient, moments))
        } else {
            let mut all = self.vars.iter().zip(gradients).zip(&mut self.moments);
            all.try_for_each(|((var, gradient), moments)| update.apply(var, gradient, moments))
        }
    }

    /// Updates all variables in one launch.
    #[cfg(feature = "cuda")]
    fn step_on(&self, gradients: &[Tensor], update: &Update) -> Result<()> {
        use super::cuda::{Moved, step};
        let whole = |gradient: &Tensor| gradient.to_dtype(candle_core::DType::F32)?.contiguous();
        let gradients = gradients.iter().map(whole).collect::<Result<Vec<_>>>()?;
        let mut all = Vec::with_capacity(self.vars.len());
        for ((var, gradient), kept) in self.vars.iter().zip(&gradients).zip(&self.moments) {
            let MomentStorage::Tensors(Moments { exp_avg, exp_avg_sq }) = kept else {
                bail!("the moments of a variable on a GPU are elsewhere");
            };
            all.push(Moved {
                var,
                gradient,
                exp_avg,
                exp_avg_sq,
            });
        }
        step(&all, update.on_gpu())
    }

    /// Returns a copy of the state, apart from the variables.
    pub fn state(&self) -> Result<State> {
        let both = self.vars.iter().zip(&self.moments);
        Ok(State {
            step: self.step,
            moments: both.map(|(var, kept)| kept.copy(var)).collect::<Result<_>>()?,
        })
    }

    /// Restores a state.
    ///
    /// # Errors
    /// Fails for moments of other variables, by number or shape; nothing is changed then.
    pub fn restore(&mut self, state: State) -> Result<()> {
        if state.moments.len() != self.vars.len() {
            bail!(
                "moments of {} variables, but there are {}",
                state.moments.len(),
                self.vars.len()
            );
        }
        let both = self.vars.iter().zip(state.moments).enumerate();
        let moments = both.map(|(i, (var, moments))| {
            for (name, moment) in [("exp_avg", &moments.exp_avg), ("exp_avg_sq", &moments.exp_avg_sq)] {
                if moment.dims() != var.dims() {
                    bail!("{name} {i} is {:?}, its variable {:?}", moment.dims(), var.dims());
                }
            }
            MomentStorage::new(var, &moments)
        });
        self.moments = moments.collect::<Result<_>>()?;
        self.step = state.step;
        Ok(())
    }
}

impl MomentStorage {
    fn zeros(var: &Tensor) -> Result<Self> {
        let zeros = var.zeros_like()?;
        Self::new(
            var,
            &Moments {
                exp_avg: zeros.clone(),
                exp_avg_sq: zeros,
            },
        )
    }

    fn new(var: &Tensor, moments: &Moments) -> Result<Self> {
        let here = |moment: &Tensor| moment.to_device(var.device())?.to_dtype(var.dtype());
        let (exp_avg, exp_avg_sq) = (here(&moments.exp_avg)?, here(&moments.exp_avg_sq)?);
        if !in_place::possible(var) {
            // Copies, because a GPU's moments are updated in place.
            return Ok(Self::Tensors(Moments {
                exp_avg: exp_avg.copy()?,
                exp_avg_sq: exp_avg_sq.copy()?,
            }));
        }
        Ok(Self::Plain {
            exp_avg: exp_avg.flatten_all()?.to_vec1()?,
            exp_avg_sq: exp_avg_sq.flatten_all()?.to_vec1()?,
        })
    }

    fn copy(&self, var: &Tensor) -> Result<Moments> {
        match self {
            Self::Plain { exp_avg, exp_avg_sq } => Ok(Moments {
                exp_avg: Tensor::from_slice(exp_avg, var.shape(), var.device())?,
                exp_avg_sq: Tensor::from_slice(exp_avg_sq, var.shape(), var.device())?,
            }),
            Self::Tensors(moments) => Ok(Moments {
                exp_avg: moments.exp_avg.copy()?,
                exp_avg_sq: moments.exp_avg_sq.copy()?,
            }),
        }
    }
}

/// Factors of one step, shared by all variables.
struct Update {
    scale: f64,
    decay: f64,
    beta1: f64,
    beta2: f64,
    step_size: f64,
    bias_correction2_sqrt: f64,
    epsilon: f64,
}

impl Update {
    fn new(config: &Config, step: usize, scale: f64, lr: f64) -> Self {
        Self {
            scale,
            decay: 1.0 - lr * config.weight_decay,
            beta1: config.beta1,
            beta2: config.beta2,
            step_size: lr / (1.0 - config.beta1.powf(step as f64)),
            bias_correction2_sqrt: (1.0 - config.beta2.powf(step as f64)).sqrt(),
            epsilon: config.epsilon,
        }
    }

    fn on_gpu(&self) -> launch::Update {
        launch::Update {
            scale: self.scale as f32,
            decay: self.decay as f32,
            weight1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            weight2: (1.0 - self.beta2) as f32,
            step_size: self.step_size as f32,
            correction: self.bias_correction2_sqrt as f32,
            epsilon: self.epsilon as f32,
        }
    }

    fn apply(&self, var: &Var, gradient: &Tensor, moments: &mut MomentStorage) -> Result<()> {
        match moments {
            MomentStorage::Plain { exp_avg, exp_avg_sq } => in_place(var, &gradient.to_dtype(var.dtype())?, |p, g| {
                let (p, g) = (p.par_chunks_mut(CHUNK), g.par_chunks(CHUNK));
                let (m, v) = (exp_avg.par_chunks_mut(CHUNK), exp_avg_sq.par_chunks_mut(CHUNK));
                p.zip(g)
                    .zip(m.zip(v))
                    .for_each(|((p, g), (m, v))| self.pass(p, g, m, v));
            }),
            MomentStorage::Tensors(moments) => self.operations(var, gradient, moments),
        }
    }

    /// Single pass over parameters `p`, gradient `g`, moments `m` and `v`, all of the same length.
    fn pass(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let (scale, decay, step_size) = (self.scale as f32, self.decay as f32, self.step_size as f32);
        let (weight1, beta2, weight2) = ((1.0 - self.beta1) as f32, self.beta2 as f32, (1.0 - self.beta2) as f32);
        let (correction, epsilon) = (self.bias_correction2_sqrt as f32, self.epsilon as f32);
        for ((p, g), (m, v)) in p.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
            let g = g * scale;
            *m += weight1 * (g - *m);
            *v = beta2 * *v + weight2 * g * g;
            *p = decay * *p - step_size * (*m / (v.sqrt() / correction + epsilon));
        }
    }

    /// Same update in candle's operations, on any device.
    fn operations(&self, var: &Var, gradient: &Tensor, moments: &mut Moments) -> Result<()> {
        let g = (gradient.to_dtype(var.dtype())? * self.scale)?;
        let m = ((&moments.exp_avg * self.beta1)? + (&g * (1.0 - self.beta1))?)?;
        let v = ((&moments.exp_avg_sq * self.beta2)? + (g.sqr()? * (1.0 - self.beta2))?)?;
        let denominator = ((v.sqrt()? / self.bias_correction2_sqrt)? + self.epsilon)?;
        let moved = ((var.as_detached_tensor() * self.decay)? - ((&m / denominator)? * self.step_size)?)?;
        var.set(&moved)?;
        *moments = Moments {
            exp_avg: m,
            exp_avg_sq: v,
        };
        Ok(())
    }
}
