//! Types of GGML in blocks of 32 numbers. q are codes, d and m are f16.
//!
//! ```text
//! Q8_0   d, 32 i8                     w = d q
//! Q4_0   d, 16 pairs of 4 bits        w = d (q - 8)
//! Q4_1   d, m, 16 pairs of 4 bits     w = d q + m
//! Q5_0   d, 32 bits, 16 pairs         w = d (q - 16)     the bits are the fifth ones
//! Q5_1   d, m, 32 bits, 16 pairs      w = d q + m
//! ```
//!
//! The lower half of pair i is number i, the upper half number i + 16.

use super::f16_at;

/// Numbers of a block.
pub(super) const BLOCK: usize = 32;

/// Pairs of a block.
const PAIRS: usize = BLOCK / 2;

pub(super) fn q8_0(block: &[u8], numbers: &mut [f32]) {
    let d = f16_at(block, 0);
    for (number, code) in numbers.iter_mut().zip(&block[2..]) {
        *number = f32::from(code.cast_signed()) * d;
    }
}

pub(super) fn q4_0(block: &[u8], numbers: &mut [f32]) {
    let d = f16_at(block, 0);
    by_codes(&block[2..], None, numbers, |code| d * (code - 8.0));
}

pub(super) fn q4_1(block: &[u8], numbers: &mut [f32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    by_codes(&block[4..], None, numbers, |code| d * code + m);
}

pub(super) fn q5_0(block: &[u8], numbers: &mut [f32]) {
    let d = f16_at(block, 0);
    by_codes(&block[6..], Some(&block[2..6]), numbers, |code| d * (code - 16.0));
}

pub(super) fn q5_1(block: &[u8], numbers: &mut [f32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    by_codes(&block[8..], Some(&block[4..8]), numbers, |code| d * code + m);
}

/// Decodes pairs of 4 bits, with fifth bits if there are any.
fn by_codes(pairs: &[u8], fifth: Option<&[u8]>, numbers: &mut [f32], number: impl Fn(f32) -> f32) {
    let fifth = |i: usize| fifth.map_or(0, |bits| (bits[i / 8] >> (i % 8) & 1) << 4);
    let (lower, upper) = numbers.split_at_mut(PAIRS);
    for (i, pair) in pairs.iter().enumerate() {
        lower[i] = number(f32::from(pair & 0xf | fifth(i)));
        upper[i] = number(f32::from(pair >> 4 | fifth(i + PAIRS)));
    }
}
