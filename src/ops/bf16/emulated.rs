//! AMX's arithmetic in plain Rust.
//!
//! A step of 32 numbers adds those of even places and those of odd places from 0 on, by fused multiply-adds, then both, then
//! all that to c. Numbers below the least normal one count as 0, before and after each operation.

use super::left::Left;
use super::line::{Line, SIDE, Sums};

/// As [`super::block::block`].
///
/// # Safety
/// As there.
pub unsafe fn block(steps: usize, a: Left, b: *const Line, c: &mut Sums, add: bool) {
    if !add {
        *c = Sums::ZERO;
    }
    let flush = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    for step in 0..steps {
        // SAFETY: the caller's.
        let b = unsafe { std::slice::from_raw_parts(b.add(step * SIDE), SIDE) };
        for (i, row) in c.0.iter_mut().enumerate() {
            // SAFETY: the caller's.
            let a = unsafe { a.numbers(i, step) }.map(|x| flush(x.to_f32()));
            for (j, c) in row.iter_mut().enumerate() {
                let mut sums = [0f32; 2];
                for (k, pair) in a.chunks_exact(2).enumerate() {
                    let column = &b[j / 16 * 16 + k].0[j % 16 * 2..][..2];
                    for (sum, (a, b)) in sums.iter_mut().zip(pair.iter().zip(column)) {
                        *sum = flush(a.mul_add(flush(b.to_f32()), *sum));
                    }
                }
                *c = flush(flush(*c) + flush(sums[0] + sums[1]));
            }
        }
    }
}
