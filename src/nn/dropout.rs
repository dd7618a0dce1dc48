//! Dropout: each number is 0 with probability p, and divided by 1 - p otherwise.  arXiv:1207.0580
//!
//! A mask follows from the seed of the forward pass and the number of the layer, so a block that is run a second time on
//! the way back (gradient checkpointing) meets the same mask. Masks are large, so they are not drawn from
//! [`crate::rng`], one number behind the other, but by SplitMix64 (doi:10.1145/2714064.2660195), which has the i-th
//! number at once: any thread may take any part.

use std::sync::{Arc, Mutex};

use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Numbers that one thread takes at a time.
const CHUNK: usize = 1 << 14;

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
    /// Whether anything is dropped now.
    pub fn is_on(&self) -> bool {
        self.probability > 0.0 && self.seed.get().is_some()
    }

    /// The same shape and type.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Some(seed) = self.seed.get().filter(|_| self.probability > 0.0) else {
            return Ok(x.clone());
        };
        let mask = Tensor::from_vec(self.kept(seed, x.elem_count()), x.shape(), x.device())?;
        x * (mask.to_dtype(x.dtype())? / (1.0 - self.probability))?
    }

    /// 1 for what stays, 0 for what is dropped.
    fn kept(&self, seed: u64, count: usize) -> Vec<u8> {
        let start = mix(mix(seed) ^ self.layer);
        let below = (self.probability * (1u64 << 32) as f64) as u64; // of the upper 32 bits
        let mut kept = vec![0; count];
        kept.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, kept)| {
            let first = start.wrapping_add(GAMMA.wrapping_mul((chunk * CHUNK) as u64));
            for (i, kept) in kept.iter_mut().enumerate() {
                let draw = mix(first.wrapping_add(GAMMA.wrapping_mul(i as u64)));
                *kept = u8::from(draw >> 32 >= below);
            }
        });
        kept
    }
}

/// SplitMix64's step from one number to the next.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's scrambling of where it stands.
fn mix(at: u64) -> u64 {
    let z = at.wrapping_add(GAMMA);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
