//! Types of GGML in blocks of 256 numbers, K-quants. q are codes, s scales and t least numbers of parts of a block, d and
//! e are f16.
//!
//! ```text
//! Q2_K   16 pairs (s, t) of 4 bits, 64 times 4 q of 2 bits, d, e               w = d s q - e t       parts of 16
//! Q3_K   32 masks, 64 times 4 q of 2 bits, 16 s of 6 bits, d                   w = d (s - 32) q      parts of 16
//! Q4_K   d, e, 8 pairs (s, t) of 6 bits, 128 pairs of q                        w = d s q - e t       parts of 32
//! Q5_K   d, e, 8 pairs (s, t) of 6 bits, 32 masks, 128 pairs of q              w = d s q - e t       parts of 32
//! Q6_K   128 pairs of q, 64 times 4 upper bits of q, 16 s of 8 bits, d         w = d s (q - 32)      parts of 16
//! ```
//!
//! A mask has a bit of 8 numbers, those at its own place in each row of 32: the fifth of Q5_K, and for Q3_K the third,
//! without which q is less by 4. Codes are interleaved: in Q4_K and Q5_K the lower and upper halves of 32 bytes are one
//! row of 32 each, in Q2_K and Q3_K the four parts of 32 bytes; in Q6_K 64 bytes are four rows, two of lower, two of
//! upper halves.

use super::f16_at;

/// Numbers of a block.
pub(super) const BLOCK: usize = 256;

/// Numbers of a row: codes beside each other.
const ROW: usize = 32;

/// Numbers of a part, in Q2_K, Q3_K and Q6_K.
const PART: usize = 16;

/// Bytes of the scales of Q3_K, Q4_K and Q5_K.
const PACKED: usize = 12;

/// Codes of 2 bits in a byte, each of another row.
const QUARTERS: usize = 4;

pub(super) fn q2_k(block: &[u8], numbers: &mut [f32]) {
    let (scales, codes) = block.split_at(BLOCK / PART);
    let (d, e) = (f16_at(codes, BLOCK / 4), f16_at(codes, BLOCK / 4 + 2));
    for (part, numbers) in numbers.chunks_exact_mut(PART).enumerate() {
        let scale = d * f32::from(scales[part] & 0xf);
        let least = e * f32::from(scales[part] >> 4);
        for (number, code) in numbers.iter_mut().zip(quarters(codes, part)) {
            *number = scale * f32::from(code) - least;
        }
    }
}

pub(super) fn q3_k(block: &[u8], numbers: &mut [f32]) {
    let (masks, rest) = block.split_at(ROW);
    let (codes, rest) = rest.split_at(BLOCK / 4);
    let (scales, d) = (six_bits(rest), f16_at(rest, PACKED));
    for (part, numbers) in numbers.chunks_exact_mut(PART).enumerate() {
        let scale = d * (f32::from(scales[part]) - 32.0);
        let (row, first) = place(part);
        let codes = quarters(codes, part).zip(&masks[first..]);
        for (number, (code, mask)) in numbers.iter_mut().zip(codes) {
            let less = if mask >> row & 1 == 0 { 4.0 } else { 0.0 };
            *number = scale * (f32::from(code) - less);
        }
    }
}

pub(super) fn q4_k(block: &[u8], numbers: &mut [f32]) {
    let (head, codes) = block.split_at(4 + PACKED);
    by_pairs(head, codes, None, numbers);
}

pub(super) fn q5_k(block: &[u8], numbers: &mut [f32]) {
    let (head, rest) = block.split_at(4 + PACKED);
    let (masks, codes) = rest.split_at(ROW);
    by_pairs(head, codes, Some(masks), numbers);
}

pub(super) fn q6_k(block: &[u8], numbers: &mut [f32]) {
    let (codes, rest) = block.split_at(BLOCK / 2);
    let (upper, rest) = rest.split_at(BLOCK / 4);
    let d = f16_at(rest, BLOCK / PART);
    for (part, numbers) in numbers.chunks_exact_mut(PART).enumerate() {
        let scale = d * f32::from(rest[part].cast_signed());
        // Of four rows, 0 and 1 are the lower halves of 64 bytes, 2 and 3 the upper ones.
        let (row, first) = place(part);
        let (bytes, shift) = (row / QUARTERS * 2 * ROW + row % 2 * ROW + first, row % QUARTERS / 2 * 4);
        let codes = codes[bytes..].iter().zip(quarters(upper, part));
        for (number, (code, upper)) in numbers.iter_mut().zip(codes) {
            *number = scale * (f32::from(code >> shift & 0xf | upper << 4) - 32.0);
        }
    }
}

/// Decodes Q4_K, and Q5_K with its masks.
fn by_pairs(head: &[u8], codes: &[u8], masks: Option<&[u8]>, numbers: &mut [f32]) {
    let (d, e) = (f16_at(head, 0), f16_at(head, 2));
    for (row, numbers) in numbers.chunks_exact_mut(ROW).enumerate() {
        let (scale, least) = scale_and_least(&head[4..], row);
        let (scale, least) = (d * f32::from(scale), e * f32::from(least));
        let codes = codes[row / 2 * ROW..].iter().map(|byte| byte >> (row % 2 * 4) & 0xf);
        let fifth = |i: usize| masks.map_or(0, |masks| (masks[i] >> row & 1) << 4);
        for ((i, number), code) in numbers.iter_mut().enumerate().zip(codes) {
            *number = scale * f32::from(code | fifth(i)) - least;
        }
    }
}

/// Returns the row of a part of 16 numbers, and its first number there.
fn place(part: usize) -> (usize, usize) {
    (part * PART / ROW, part * PART % ROW)
}

/// Returns the codes of 2 bits of a part of 16 numbers.
fn quarters(codes: &[u8], part: usize) -> impl Iterator<Item = u8> {
    let (row, first) = place(part);
    let (bytes, shift) = (row / QUARTERS * ROW + first, row % QUARTERS * 2);
    codes[bytes..].iter().map(move |byte| byte >> shift & 3)
}

/// Unpacks the scales of Q3_K: 4 lower bits of 16 in 8 bytes, the lower halves first, 2 upper bits of them in 4 bytes.
fn six_bits(packed: &[u8]) -> [u8; PART] {
    std::array::from_fn(|i| {
        let lower = packed[i % 8] >> (4 * (i / 8)) & 0xf;
        let upper = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        lower | upper << 4
    })
}

/// Unpacks the scale and the least number of a row of Q4_K or Q5_K: of the first four rows in the lower 6 bits of a byte
/// each, of the last four in halves of a byte, with 2 bits above those of the first ones.
fn scale_and_least(packed: &[u8], row: usize) -> (u8, u8) {
    match row.checked_sub(4) {
        None => (packed[row] & 0x3f, packed[row + 4] & 0x3f),
        Some(i) => (
            packed[8 + i] & 0xf | packed[i] >> 2 & 0x30,
            packed[8 + i] >> 4 | packed[4 + i] >> 2 & 0x30,
        ),
    }
}
