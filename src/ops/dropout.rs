//! Which numbers dropout keeps: number i is dropped where the upper 32 bits of draw i lie below p 2^32.  arXiv:1207.0580
//!
//! Draws are those of SplitMix64 (doi:10.1145/2714064.2660195), which has the i-th number at once: any thread of the CPU or
//! of a GPU may take any part, and none of the masks, which are as large as what they mask, is ever stored.

#[cfg(feature = "cuda")]
pub(super) mod cuda;
mod launch;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Numbers that one thread takes at a time.
const CHUNK: usize = 1 << 14;

/// SplitMix64's step from one number to the next.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A mask over any count of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mask {
    /// Where the generator stands before the first draw.
    start: u64,
    /// p 2^32
    below: u64,
    /// 1 / (1 - p): what is left is multiplied by it.
    pub factor: f32,
}

impl Mask {
    /// The mask of a layer, of probability `p` in 0..1, in a forward pass with this seed.
    pub fn new(p: f64, seed: u64, layer: u64) -> Self {
        Self {
            start: mix(mix(seed) ^ layer),
            below: (p * (1u64 << 32) as f64) as u64,
            factor: (1.0 / (1.0 - p)) as f32,
        }
    }

    /// Whether number i stays.
    pub fn keeps(&self, i: u64) -> bool {
        mix(self.start.wrapping_add(GAMMA.wrapping_mul(i))) >> 32 >= self.below
    }

    /// Times 0 or 1: what is left is not multiplied by the factor yet.
    pub fn apply(&self, numbers: &mut [f32]) {
        numbers.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, numbers)| {
            for (i, number) in (chunk * CHUNK..).zip(numbers) {
                *number *= f32::from(u8::from(self.keeps(i as u64))); // NaN stays
            }
        });
    }

    /// x, masked and multiplied by the factor, in candle's own operations: the same shape and type.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut kept = vec![1.0; x.elem_count()];
        self.apply(&mut kept);
        let mask = Tensor::from_vec(kept, x.shape(), x.device())?.to_dtype(x.dtype())?;
        x * (mask * f64::from(self.factor))?
    }
}

/// SplitMix64's scrambling of where it stands.
fn mix(at: u64) -> u64 {
    let z = at.wrapping_add(GAMMA);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
