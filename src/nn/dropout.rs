//! Dropout: each number is 0 with probability p, and divided by 1 - p otherwise.  arXiv:1207.0580
//!
//! A mask follows from the seed of the forward pass and the number of the layer, so a block that is run a second time on
//! the way back (gradient checkpointing) meets the same mask. Masks are large, so they are not drawn from
//! [`crate::rng`], one number behind the other, but as [`crate::ops::dropout`] has them.

use std::sync::{Arc, Mutex};

use candle_core::{Result, Tensor};

use crate::ops::dropout::Mask;

/// The seed that all layers of a model read; none where nothing is dropped, as when sampling.
#[derive(Debug, Clone, Default)]
pub struct Seed(Arc<Mutex<Option<u64>>>);

impl Seed {
    /// Sets the seed of the next forward passes: another one for each micro-batch, the same for its second run.
    pub fn set(&self, seed: Option<u64>) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = seed;
    }

    fn get(&self) -> Option<u64> {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The dropout of one layer.
#[derive(Debug, Clone)]
pub struct Dropout {
    /// 0 <= p < 1
    pub probability: f64,
    pub seed: Seed,
    /// Tells the layers of a model apart.
    pub layer: u64,
}

impl Dropout {
    /// What is dropped now, if anything is.
    pub fn mask(&self) -> Option<Mask> {
        let seed = self.seed.get().filter(|_| self.probability > 0.0);
        seed.map(|seed| Mask::new(self.probability, seed, self.layer))
    }

    /// The same shape and type.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.mask().map_or_else(|| Ok(x.clone()), |mask| mask.forward(x))
    }
}
