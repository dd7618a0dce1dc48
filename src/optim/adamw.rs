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
//!
//! `adamw8bit` keeps m and v in 8 bits by blocks ([`super::dynamic_map`]), as `bitsandbytes.optim.AdamW8bit` does; where a
//! step changes them they are f32. Variables of fewer than 4096 numbers keep theirs in f32 here and there.

use candle_core::{Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::moments::{MomentForm, MomentStorage};
use super::update::Update;

pub use super::config::{Config, Name};
pub use super::moments::Moments;

/// AdamW over a fixed list of variables.
#[derive(Debug)]
pub struct AdamW {
    vars: Vec<Var>,
    config: Config,
    /// Completed steps.
    step: usize,
    moments: Vec<MomentStorage>,
}

/// State in a checkpoint.
#[derive(Debug, Clone)]
pub struct State {
    /// Completed steps.
    pub step: usize,
    /// Moments of each variable.
    pub moments: Vec<Moments>,
}

impl AdamW {
    /// Starts at step 0 with moments of zero.
    pub fn new(vars: Vec<Var>, config: &Config) -> Result<Self> {
        let moments = vars
            .iter()
            .map(|var| MomentStorage::zeros(MomentForm::of(config.name, var.elem_count()), var))
            .collect::<Result<_>>()?;
        Ok(Self {
            vars,
            config: config.clone(),
            step: 0,
            moments,
        })
    }

    /// Returns the optimiser's name.
    pub fn name(&self) -> Name {
        self.config.name
    }

    /// Returns the form of each variable's moments.
    pub fn forms(&self) -> impl Iterator<Item = MomentForm> {
        self.vars
            .iter()
            .map(|var| MomentForm::of(self.config.name, var.elem_count()))
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
        if self.vars.iter().all(|var| super::in_place::possible_on_gpu(var)) && !self.vars.is_empty() {
            return self.step_on(gradients, &update);
        }
        if self.vars.iter().all(|var| var.device().is_cpu()) {
            let all = self.vars.par_iter().zip(gradients).zip(&mut self.moments);
            all.try_for_each(|((var, gradient), moments)| moments.apply(&update, var, gradient))
        } else {
            let mut all = self.vars.iter().zip(gradients).zip(&mut self.moments);
            all.try_for_each(|((var, gradient), moments)| moments.apply(&update, var, gradient))
        }
    }

    /// Updates all variables in one launch for each form of moments.
    #[cfg(feature = "cuda")]
    fn step_on(&self, gradients: &[Tensor], update: &Update) -> Result<()> {
        use super::cuda::{self, Moved};
        let whole = |gradient: &Tensor| gradient.to_dtype(candle_core::DType::F32)?.contiguous();
        let gradients = gradients.iter().map(whole).collect::<Result<Vec<_>>>()?;
        let mut all = Vec::with_capacity(self.vars.len());
        for ((var, gradient), kept) in self.vars.iter().zip(&gradients).zip(&self.moments) {
            let MomentStorage::Tensors(moments) = kept else {
                bail!("the moments of a variable on a GPU are elsewhere");
            };
            all.push(Moved { var, gradient, moments });
        }
        cuda::step(&all, update.on_gpu())
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
    /// Fails for moments of other variables, by number or shape, or in another form; nothing is changed then.
    pub fn restore(&mut self, state: State) -> Result<()> {
        if state.moments.len() != self.vars.len() {
            bail!(
                "moments of {} variables, but there are {}",
                state.moments.len(),
                self.vars.len()
            );
        }
        let both = self.vars.iter().zip(self.forms()).zip(&state.moments).enumerate();
        let moments = both.map(|(i, ((var, form), moments))| MomentStorage::restored(i, form, var, moments));
        self.moments = moments.collect::<Result<_>>()?;
        self.step = state.step;
        Ok(())
    }
}
