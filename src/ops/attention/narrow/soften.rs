//! Softmax of blocks of scores, forwards and backwards, in powers of two; weights come out in bf16.

use crate::ops::attention::softmax::{COARSE, Running, exp2};
use crate::ops::bf16::Isa;
use crate::ops::bf16::line::{Line, SIDE, Sums};
use crate::ops::simd::{Fused, Simd};

/// Numbers of f32 in a register, whatever the instructions.
const COUNT: usize = 16;

/// Blocks that [`soften_back`] writes to.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Weights p, a line a key.
    pub weights: &'a mut [Line],
    /// Gradients of scores, a line a key.
    pub slopes: &'a mut [Line],
    /// The same once more, in pairs of keys: for products over keys.
    pub pairs: &'a mut [Line],
}

/// Queries of a block of keys and queries.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a> {
    /// Binary logarithms of the sums of exponentials.
    pub log_sums: &'a [f32; SIDE],
    /// sum(do o)
    pub drifts: &'a [f32; SIDE],
}

/// Turns blocks of scores of the same queries into weights 2^(factor score - largest), a line a query, and adds them to the
/// sums; rescales these and `out` where a larger score is met.
pub fn soften(
    isa: Isa,
    scores: &[Sums],
    factor: f32,
    running: &mut [Running; SIDE],
    weights: &mut [Line],
    out: &mut [Sums],
) {
    assert!(scores.len() * SIDE <= weights.len(), "scores without weights");
    // SAFETY: blocks and lines have whole registers; the instructions were detected.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if isa != Isa::Emulated && x86::available() {
            return x86::soften(scores, factor, running, weights, out);
        }
        let _ = isa;
        soften_with::<Fused>(scores, factor, running, weights, out);
    }
}

/// Turns a block of scores of keys and queries into weights p = 2^(factor score - lse), and that of their gradients into the
/// gradients of scores, p (dp - drift).
pub fn soften_back(isa: Isa, scores: &Sums, slopes: &Sums, factor: f32, queries: Queries, to: Gradients) {
    let lines = [&to.weights, &to.slopes, &to.pairs];
    assert!(lines.iter().all(|lines| lines.len() >= SIDE), "scores without weights");
    // SAFETY: as above.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if isa != Isa::Emulated && x86::available() {
            return x86::soften_back(scores, slopes, factor, queries, to);
        }
        let _ = isa;
        soften_back_with::<Fused>(scores, slopes, factor, queries, to);
    }
}

/// A register whose numbers can be rounded to bf16; those below the least normal one to 0.
trait Narrow: Simd {
    /// # Safety
    /// The processor has the register.
    unsafe fn narrow(low: Self, high: Self) -> Line;

    /// Returns pairs of a number of each.
    ///
    /// # Safety
    /// The processor has the register.
    unsafe fn pairs(first: Self, second: Self) -> Line;
}

#[inline(always)]
unsafe fn soften_with<V: Narrow>(
    scores: &[Sums],
    factor: f32,
    running: &mut [Running; SIDE],
    weights: &mut [Line],
    out: &mut [Sums],
) {
    for (i, running) in running.iter_mut().enumerate() {
        // SAFETY: a row of a block is two registers. The caller has asserted the rest.
        unsafe {
            let row = |block: usize| scores.get_unchecked(block).0[i].as_ptr();
            let before = V::splat(running.largest);
            let mut most = [V::splat(f32::NEG_INFINITY); 2];
            for block in 0..scores.len() {
                for (half, most) in most.iter_mut().enumerate() {
                    *most = V::load(row(block).add(half * COUNT)).max(*most); // skips NaN, which shows in the sums
                }
            }
            let scale = V::splat(factor);
            let most = most[0].max(most[1]).mul(scale);
            // After the first blocks few maxima rise.
            if most.any_above(before) {
                let faded = running.largest;
                running.largest = most.largest();
                let [faded] = exp2([V::splat(faded - running.largest)], COARSE);
                let faded_row = |row: *mut f32| V::load(row).mul(faded).store(row);
                faded_row(running.sums.as_mut_ptr());
                for out in &mut *out {
                    faded_row(out.0[i].as_mut_ptr());
                    faded_row(out.0[i].as_mut_ptr().add(COUNT));
                }
            }
            let shift = V::splat(-running.largest);
            let mut sum = V::load(running.sums.as_ptr());
            let mut block = 0;
            while block + 2 <= scores.len() {
                let mut x = [shift; 4];
                for (half, x) in x.iter_mut().enumerate() {
                    *x = x.add_product(V::load(row(block + half / 2).add(half % 2 * COUNT)), scale);
                }
                let [a, b, c, d] = exp2(x, COARSE);
                sum = sum.add(a.add(b).add(c.add(d)));
                *weights.get_unchecked_mut(block * SIDE + i) = V::narrow(a, b);
                *weights.get_unchecked_mut((block + 1) * SIDE + i) = V::narrow(c, d);
                block += 2;
            }
            if block < scores.len() {
                let mut x = [shift; 2];
                for (half, x) in x.iter_mut().enumerate() {
                    *x = x.add_product(V::load(row(block).add(half * COUNT)), scale);
                }
                let [a, b] = exp2(x, COARSE);
                sum = sum.add(a.add(b));
                *weights.get_unchecked_mut(block * SIDE + i) = V::narrow(a, b);
            }
            sum.store(running.sums.as_mut_ptr());
        }
    }
}

#[inline(always)]
unsafe fn soften_back_with<V: Narrow>(scores: &Sums, slopes: &Sums, factor: f32, queries: Queries, to: Gradients) {
    // SAFETY: a row of a block is two registers. The caller has asserted the rest.
    unsafe {
        let two = |numbers: *const f32| [V::load(numbers), V::load(numbers.add(COUNT))];
        let factor = V::splat(factor);
        let zero = V::splat(0.0);
        let shifts = two(queries.log_sums.as_ptr()).map(|log_sum| zero.sub(log_sum));
        let drifts = two(queries.drifts.as_ptr());
        for pair in 0..SIDE / 2 {
            let mut x = [zero; 4];
            for row in 0..2 {
                let scores = two(scores.0[2 * pair + row].as_ptr());
                for half in 0..2 {
                    x[2 * row + half] = shifts[half].add_product(scores[half], factor);
                }
            }
            let weights = exp2(x, COARSE);
            let mut ds = weights;
            for row in 0..2 {
                let slopes = two(slopes.0[2 * pair + row].as_ptr());
                for half in 0..2 {
                    let at = 2 * row + half;
                    ds[at] = weights[at].mul(slopes[half].sub(drifts[half]));
                }
            }
            for row in 0..2 {
                let line = 2 * pair + row;
                *to.weights.get_unchecked_mut(line) = V::narrow(weights[2 * row], weights[2 * row + 1]);
                *to.slopes.get_unchecked_mut(line) = V::narrow(ds[2 * row], ds[2 * row + 1]);
            }
            for half in 0..2 {
                *to.pairs.get_unchecked_mut(half * COUNT + pair) = V::pairs(ds[half], ds[2 + half]);
            }
        }
    }
}

impl Narrow for Fused {
    #[inline(always)]
    unsafe fn narrow(low: Self, high: Self) -> Line {
        let mut line = Line::ZERO;
        let numbers = low.0.into_iter().chain(high.0);
        line.0.iter_mut().zip(numbers).for_each(|(to, x)| *to = rounded(x));
        line
    }
    #[inline(always)]
    unsafe fn pairs(first: Self, second: Self) -> Line {
        let mut line = Line::ZERO;
        for (to, (a, b)) in line.0.chunks_exact_mut(2).zip(first.0.into_iter().zip(second.0)) {
            (to[0], to[1]) = (rounded(a), rounded(b));
        }
        line
    }
}

/// Returns the nearest number of bf16; 0 for those below the least normal one.
fn rounded(x: f32) -> half::bf16 {
    crate::ops::bf16::line::nearest(if x.is_subnormal() { 0f32.copysign(x) } else { x })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::{COUNT, Gradients, Line, Narrow, Queries, Running, SIDE, Sums, soften_back_with, soften_with};

    /// Returns true if the processor rounds to bf16.
    pub fn available() -> bool {
        is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw")
    }

    /// Places of the numbers of two halves, in turns.
    static TURNS: [i16; 32] = {
        let mut turns = [0; 32];
        let mut i = 0;
        while i < COUNT {
            (turns[2 * i], turns[2 * i + 1]) = (i as i16, (i + COUNT) as i16);
            i += 1;
        }
        turns
    };

    // SAFETY (both): guaranteed by the caller.
    impl Narrow for __m512 {
        #[inline(always)]
        unsafe fn narrow(low: Self, high: Self) -> Line {
            unsafe { transmute::<__m512bh, Line>(_mm512_cvtne2ps_pbh(high, low)) }
        }
        #[inline(always)]
        unsafe fn pairs(first: Self, second: Self) -> Line {
            unsafe {
                let both = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
                let turns = _mm512_loadu_si512(TURNS.as_ptr().cast());
                transmute::<__m512i, Line>(_mm512_permutexvar_epi16(turns, both))
            }
        }
    }

    /// # Safety
    /// The conditions that `soften` above checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn soften(
        scores: &[Sums],
        factor: f32,
        running: &mut [Running; SIDE],
        weights: &mut [Line],
        out: &mut [Sums],
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe { soften_with::<__m512>(scores, factor, running, weights, out) }
    }

    /// # Safety
    /// The conditions that `soften_back` above checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn soften_back(scores: &Sums, slopes: &Sums, factor: f32, queries: Queries, to: Gradients) {
        // SAFETY: guaranteed by the caller.
        unsafe { soften_back_with::<__m512>(scores, slopes, factor, queries, to) }
    }
}
