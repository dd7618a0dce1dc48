//! Dropout: each number is 0 with probability p, and divided by 1 - p otherwise.  arXiv:1207.0580
//!
//! A mask is derived from the seed of the forward pass and the layer's number, so a block that is recomputed in the
//! backward pass (gradient checkpointing) gets the same mask. Masks are large, so they are not drawn sequentially from
//! [`crate::rng`], but as in [`crate::ops::dropout`].

use std::sync::{Arc, Mutex};

use candle_core::{Result, Tensor};

use crate::ops::dropout::Mask;

/// Seed shared by all layers of a model; None without dropout, as in sampling.
#[derive(Debug, Clone, Default)]
pub struct Seed(Arc<Mutex<Option<u64>>>);

impl Seed {
    /// Sets the seed of the next forward passes: new for each micro-batch, the same for its recomputation.
    pub fn set(&self, seed: Option<u64>) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = seed;
    }

    fn get(&self) -> Option<u64> {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Dropout of one layer.
#[derive(Debug, Clone)]
pub struct Dropout {
    /// 0 <= p < 1
    pub probability: f64,
    /// Seed of the masks.
    pub seed: Seed,
    /// Number of the layer in the model.
    pub layer: u64,
}

impl Dropout {
    /// Returns the current mask, if dropout is active.
    pub fn mask(&self) -> Option<Mask> {
        let seed = self.seed.get().filter(|_| self.probability > 0.0);
        seed.map(|seed| Mask::new(self.probability, seed, self.layer))
    }

    /// Applies dropout, keeping shape and type.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.mask().map_or_else(|| Ok(x.clone()), |mask| mask.forward(x))
    }
}
