//! Random weights, for benchmarking a model without its checkpoint.
//!
//! Matrices are uniform with the usual variance, 1 / inputs; vectors are near 1 if they scale and near 0 if they are
//! added. Values are derived from the tensor's name and their index, so that they are the same for any number of
//! threads.

use candle_core::{DType, Device, Result, Shape, Tensor};
use half::bf16;
use rayon::prelude::*;

/// Numbers that one thread draws at a time, at least.
const CHUNK: usize = 1 << 16;

/// Returns the tensor called `path`.
pub fn tensor(path: &str, shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
    let seed = blake3::hash(path.as_bytes());
    let seed = u64::from_le_bytes(std::array::from_fn(|i| seed.as_bytes()[i]));
    let inputs: usize = shape.dims().iter().skip(1).product();
    let (centre, spread) = match (shape.rank(), path.ends_with("weight")) {
        (1, true) => (1.0, 0.02),
        (1, false) => (0.0, 0.02),
        _ => (0.0, (3.0 / inputs.max(1) as f32).sqrt()), // variance of -1..1: 1/3
    };
    let number = |index: u64| {
        let draw = mix(seed.wrapping_add(index));
        let even = (draw >> 40) as f32 / (1u64 << 23) as f32 - 1.0; // -1..1
        even.mul_add(spread, centre)
    };
    let count = shape.elem_count();
    match dtype {
        // As they are stored: half of the bytes that would go to a GPU.
        DType::BF16 => Tensor::from_vec(drawn(count, |index| bf16::from_f32(number(index))), shape, device),
        _ => Tensor::from_vec(drawn(count, number), shape, device)?.to_dtype(dtype),
    }
}

/// Returns the numbers of all indices below `count`.
fn drawn<T: Send>(count: usize, number: impl Fn(u64) -> T + Sync + Send) -> Vec<T> {
    let indices = (0..count).into_par_iter().with_min_len(CHUNK);
    indices.map(|index| number(index as u64)).collect()
}

/// SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
