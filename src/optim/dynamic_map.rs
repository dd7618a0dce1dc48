//! Dynamic map of 8 bits, and blocks of numbers in it: the states of 8-bit optimisers.  arXiv:2110.02861
//!
//! A map has 256 values, the largest of which is 1. With 7 decades e = 10^-6 .. 1, decade i from the smallest is cut into
//! 2^i steps of equal size from e/10 to e (2^(i+1) without signs), whose middles are values; so are their negatives in the
//! signed map, and 0. A block of 256 numbers has the largest magnitude among them, and each number the index of the value
//! nearest to its quotient by that; halfway between two values it is the smaller one's.
//!
//! Equal to bitsandbytes' `create_dynamic_map` and to its block-wise quantisation in torch and on GPUs. (Its kernel for
//! CPUs looks values up in a table of 65536 steps, and is up to one such step off.)

use std::sync::LazyLock;

/// Numbers that share a largest magnitude.
pub const BLOCK: usize = 256;

/// Number of decades.
const DECADES: u32 = 7;

/// Smallest divisor: a block of zeros stays one.
const SMALLEST: f32 = 1e-38;

/// Values of 8 bits, ascending.
#[derive(Debug)]
pub struct DynamicMap {
    values: [f32; 256],
    /// Middles between neighbours.
    bounds: [f32; 255],
}

/// Map of -1 to 1, for the first moment.
static SIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(true));

/// Map of 0 to 1, for the second moment.
static UNSIGNED: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(false));

impl DynamicMap {
    /// Returns the map of -1 to 1.
    pub fn signed() -> &'static Self {
        &SIGNED
    }

    /// Returns the map of 0 to 1.
    pub fn unsigned() -> &'static Self {
        &UNSIGNED
    }

    fn new(signed: bool) -> Self {
        let mut all = vec![0.0, 1.0];
        for decade in 0..DECADES {
            let steps = 1usize << (decade + u32::from(!signed));
            let top = 10f64.powi(decade as i32 + 1 - DECADES as i32) as f32;
            for i in 0..steps {
                let middle = top * ((edge(i, steps) + edge(i + 1, steps)) / 2.0);
                all.push(middle);
                if signed {
                    all.push(-middle);
                }
            }
        }
        all.sort_by(f32::total_cmp);
        let values: [f32; 256] = std::array::from_fn(|i| all[i]); // 2 and 2 (2^7 - 1) of them
        Self {
            values,
            bounds: std::array::from_fn(|i| (values[i] + values[i + 1]) / 2.0),
        }
    }

    /// Returns the values, ascending.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// Returns the index of the nearest value.
    fn nearest(&self, x: f32) -> u8 {
        let (mut at, mut step) = (0, 128);
        while step > 0 {
            if self.bounds[at + step - 1] < x {
                at += step;
            }
            step /= 2;
        }
        at as u8
    }

    /// Decodes a block, or the beginning of one.
    pub fn decode(&self, codes: &[u8], largest: f32, numbers: &mut [f32]) {
        for (number, code) in numbers.iter_mut().zip(codes) {
            *number = self.values[usize::from(*code)] * largest;
        }
    }

    /// Encodes a block, or the beginning of one; returns the largest magnitude.
    pub fn encode(&self, numbers: &[f32], codes: &mut [u8]) -> f32 {
        let largest = numbers.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let factor = 1.0 / largest.max(SMALLEST);
        for (code, number) in codes.iter_mut().zip(numbers) {
            *code = self.nearest((number * factor).clamp(-1.0, 1.0));
        }
        largest
    }
}

/// Edge `i` of `steps` equal steps from 0.1 to 1, as `torch.linspace` rounds it: from the nearer end.
fn edge(i: usize, steps: usize) -> f32 {
    let step = (1.0 - 0.1f32) / steps as f32;
    match i < steps.div_ceil(2) {
        true => step.mul_add(i as f32, 0.1),
        false => (-step).mul_add((steps - i) as f32, 1.0),
    }
}
