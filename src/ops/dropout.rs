//! Dropout masks without storage: number i is dropped where the upper 32 bits of draw i are below p 2^32.
//! arXiv:1207.0580
//!
//! Draws are those of SplitMix64 (doi:10.1145/2714064.2660195), which computes the i-th number directly: any thread of
//! the CPU or of a GPU may take any part, and no mask, as large as its input, is ever stored.

#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod launch;

use candle_core::{Result, Tensor};
use half::bf16;
use rayon::prelude::*;

use crate::process::allocations::compute;

/// Numbers that one thread processes at a time.
const CHUNK: usize = 1 << 14;

/// SplitMix64's step from one number to the next.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A mask over any count of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mask {
    /// State of the generator before the first draw.
    start: u64,
    /// p 2^32
    below: u64,
    /// 1 / (1 - p): the kept numbers are multiplied by it.
    pub factor: f32,
}

impl Mask {
    /// Mask of a layer with probability `p` in 0..1, in a forward pass with this seed.
    pub fn new(p: f64, seed: u64, layer: u64) -> Self {
        Self {
            start: mix(mix(seed) ^ layer),
            below: (p * (1u64 << 32) as f64) as u64,
            factor: (1.0 / (1.0 - p)) as f32,
        }
    }

    /// Returns the mask of the numbers after the first `count` ones.
    pub fn after(self, count: usize) -> Self {
        let start = self.start.wrapping_add(GAMMA.wrapping_mul(count as u64));
        Self { start, ..self }
    }

    /// True if number i is kept.
    pub fn keeps(&self, i: u64) -> bool {
        mix(self.start.wrapping_add(GAMMA.wrapping_mul(i))) >> 32 >= self.below
    }

    /// Multiplies by 0 or 1, without the factor.
    pub fn apply(&self, numbers: &mut [f32]) {
        self.multiply(numbers, |number, kept| number * kept);
    }

    /// Same as [`Mask::apply`], for bf16.
    pub fn apply_narrow(&self, numbers: &mut [bf16]) {
        self.multiply(numbers, |number, kept| bf16::from_f32(number.to_f32() * kept));
    }

    fn multiply<T: Copy + Send>(&self, numbers: &mut [T], product: impl Fn(T, f32) -> T + Sync) {
        let of_chunk = |(chunk, numbers): (usize, &mut [T])| {
            for (i, number) in (chunk * CHUNK..).zip(numbers) {
                *number = product(*number, f32::from(u8::from(self.keeps(i as u64)))); // NaN stays
            }
        };
        compute(|| numbers.par_chunks_mut(CHUNK).enumerate().for_each(of_chunk));
    }

    /// Returns x, masked and multiplied by the factor, in candle's own operations: the same shape and type.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut kept = vec![1.0; x.elem_count()];
        self.apply(&mut kept);
        let mask = Tensor::from_vec(kept, x.shape(), x.device())?.to_dtype(x.dtype())?;
        x * (mask * f64::from(self.factor))?
    }
}

/// SplitMix64's output function of a state.
fn mix(at: u64) -> u64 {
    let z = at.wrapping_add(GAMMA);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
