//! Lines of packed operands, and the block of sums.
//!
//! A step is 32 numbers along the inner axis: 32 lines, two tiles of 16 each.
//!
//! * Line i of a step of a: 32 numbers of row i.
//! * Line i of a tile of b: the pairs (2 i, 2 i + 1) along the inner axis, of 16 columns.

use half::bf16;

use crate::ops::simd_math::wide;

/// Numbers of a line; rows and columns of a block; lines of a step.
pub const SIDE: usize = 32;

/// 32 numbers.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [bf16; SIDE]);

/// A block of c.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Sums(pub [[f32; SIDE]; SIDE]);

impl Line {
    /// Zeros.
    pub const ZERO: Self = Self([bf16::ZERO; SIDE]);
}

impl Sums {
    /// Zeros.
    pub const ZERO: Self = Self([[0.0; SIDE]; SIDE]);

    /// Returns the transpose.
    pub fn t(&self) -> Self {
        let mut transposed = Self::ZERO;
        for (i, row) in self.0.iter().enumerate() {
            for (to, number) in transposed.0.iter_mut().zip(row) {
                to[i] = *number;
            }
        }
        transposed
    }
}

/// Returns the nearest number of bf16, of two equally near the even one.
#[inline(always)]
pub fn nearest(wide: f32) -> bf16 {
    let bits = wide.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    bf16::from_bits(if is_nan { quiet } else { rounded } as u16)
}

/// Returns the same number in f32, of which bf16 is the upper half.
#[inline(always)]
pub fn exact(narrow: bf16) -> f32 {
    f32::from_bits(u32::from(narrow.to_bits()) << 16)
}

wide! {
    /// Rounds numbers, up to the shorter length.
    pub fn nearest_numbers(wide: &[f32], narrow: &mut [bf16]) {
        for (narrow, wide) in narrow.iter_mut().zip(wide) {
            *narrow = nearest(*wide);
        }
    }
}

wide! {
    /// Widens numbers, up to the shorter length.
    pub fn exact_numbers(narrow: &[bf16], wide: &mut [f32]) {
        for (wide, narrow) in wide.iter_mut().zip(narrow) {
            *wide = exact(*narrow);
        }
    }
}
