//! Softmax of tiles of scores, forwards and backwards, in powers of two.
//!
//! Four registers are processed side by side: an exponential is a long chain of dependent steps, which alone would leave the
//! processor idle.

use super::super::simd::{Isa, Simd};
use super::super::simd_math::LANES;

/// Registers side by side.
const GROUP: usize = 4;

/// Rows of a tile, `step` apart: the first `len` numbers of each, a multiple of 16.
#[derive(Debug)]
pub struct Tile<'a> {
    /// Whole rows.
    pub numbers: &'a mut [f32],
    /// Distance between rows.
    pub step: usize,
    /// Numbers of a row.
    pub len: usize,
}

impl Tile<'_> {
    /// Returns the number of whole rows.
    fn rows(&self) -> usize {
        assert!(
            self.len <= self.step && self.len.is_multiple_of(LANES),
            "a row of scores beyond its tile"
        );
        self.numbers.len() / self.step
    }
}

/// Softmax of a query over the keys seen so far.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    /// Largest score.
    pub largest: f32,
    /// Sums of 2^(score - largest), of every so many keys.
    pub sums: [f32; LANES],
}

impl Running {
    /// Before the first key. Not minus infinity: a tile whose keys are all masked with it must vanish, without NaN.
    pub const START: Self = Self {
        largest: f32::MIN,
        sums: [0.0; LANES],
    };
}

/// Turns scores into 2^(score - largest) and adds them to the sums; rescales these and `out` where a larger score is met.
pub fn soften(isa: Isa, scores: Tile, running: &mut [Running], out: Tile) {
    let rows = scores.rows();
    assert!(rows <= running.len() && rows <= out.rows(), "scores without sums");
    // SAFETY: the assertions bound every access; the instructions were detected.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::soften_avx512(scores, running, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::soften_avx2(scores, running, out),
            Isa::Portable => soften_with::<[f32; 8]>(scores, running, out),
        }
    }
}

/// Turns scores into weights p = 2^(s - lse), and the gradients of the weights, `slopes`, into those of the scores,
/// p (dp - drift).
pub fn soften_back(isa: Isa, scores: Tile, slopes: Tile, log_sums: &[f32], drifts: &[f32]) {
    let rows = scores.rows();
    assert!(
        rows <= slopes.rows() && scores.len == slopes.len,
        "scores without slopes"
    );
    assert!(rows <= log_sums.len() && rows <= drifts.len(), "scores without sums");
    // SAFETY: as above.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::soften_back_avx512(scores, slopes, log_sums, drifts),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::soften_back_avx2(scores, slopes, log_sums, drifts),
            Isa::Portable => soften_back_with::<[f32; 8]>(scores, slopes, log_sums, drifts),
        }
    }
}

/// Polynomial for 2^r, |r| <= 1/2, from the highest power on: the minimax polynomial of the relative error, fixed to 1 at 0, to
/// about one unit in the last place.
const EXACT: [f32; 7] = [
    1.535_336e-4,
    1.339_887_5e-3,
    9.618_437e-3,
    5.550_332_4e-2,
    2.402_264_8e-1,
    6.931_472e-1,
    1.0,
];

/// The same to 4e-6, for what is rounded to bf16.
pub(super) const COARSE: [f32; 5] = [0.009_570_3, 0.055_466_4, 0.240_222_6, std::f32::consts::LN_2, 1.0];

/// Returns 2^x for each x of at most 0; 0 below -126.5.
///
/// # Safety
/// The processor has the registers.
#[inline(always)]
pub(super) unsafe fn exp2<V: Simd, const N: usize, const D: usize>(mut x: [V; N], polynomial: [f32; D]) -> [V; N] {
    // x = n + r with |r| <= 1/2; adding 1.5 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut shifted = x;
        for (x, shifted) in x.iter_mut().zip(&mut shifted) {
            *x = V::splat(-127.0).max(*x); // of -127 the power is 0; NaN stays
            *shifted = x.add(V::splat(ROUND));
            *x = x.sub(shifted.sub(V::splat(ROUND)));
        }
        let mut p = [V::splat(polynomial[0]); N];
        for c in &polynomial[1..] {
            for (p, x) in p.iter_mut().zip(x) {
                *p = V::splat(*c).add_product(*p, x);
            }
        }
        for (p, shifted) in p.iter_mut().zip(shifted) {
            *p = p.mul(shifted.power_of_two());
        }
        p
    }
}

/// Multiplies `len` numbers.
#[inline(always)]
unsafe fn scale<V: Simd>(numbers: *mut f32, len: usize, factor: V) {
    for at in (0..len).step_by(V::COUNT) {
        // SAFETY: guaranteed by the caller.
        unsafe { V::load(numbers.add(at)).mul(factor).store(numbers.add(at)) }
    }
}

#[inline(always)]
unsafe fn soften_with<V: Simd>(scores: Tile, running: &mut [Running], out: Tile) {
    let rows = scores.numbers.chunks_exact_mut(scores.step).zip(running);
    for ((row, running), out_row) in rows.zip(out.numbers.chunks_exact_mut(out.step)) {
        let row = row.as_mut_ptr();
        // SAFETY: the row has `len` numbers, the sums LANES: whole registers. The caller has asserted the rest.
        unsafe {
            let before = V::splat(running.largest);
            let mut largest = before;
            for at in (0..scores.len).step_by(V::COUNT) {
                largest = V::load(row.add(at)).max(largest); // skips NaN, which shows in the sums
            }
            // After the first tiles few maxima rise.
            if largest.any_above(before) {
                let faded = running.largest;
                running.largest = largest.largest();
                let [faded] = exp2([V::splat(faded - running.largest)], EXACT);
                scale(running.sums.as_mut_ptr(), V::COUNT, faded);
                scale(out_row.as_mut_ptr(), out.len, faded);
            }
            let now = V::splat(running.largest);
            let mut sum = V::load(running.sums.as_ptr());
            let mut at = 0;
            while at + GROUP * V::COUNT <= scores.len {
                let mut group = [now; GROUP];
                for (i, x) in group.iter_mut().enumerate() {
                    *x = V::load(row.add(at + i * V::COUNT)).sub(now);
                }
                let group = exp2(group, EXACT);
                for (i, x) in group.iter().enumerate() {
                    x.store(row.add(at + i * V::COUNT));
                }
                sum = sum.add(group[0].add(group[1]).add(group[2].add(group[3])));
                at += GROUP * V::COUNT;
            }
            while at < scores.len {
                let [x] = exp2([V::load(row.add(at)).sub(now)], EXACT);
                x.store(row.add(at));
                sum = sum.add(x);
                at += V::COUNT;
            }
            sum.store(running.sums.as_mut_ptr());
        }
    }
}

#[inline(always)]
unsafe fn soften_back_with<V: Simd>(scores: Tile, slopes: Tile, log_sums: &[f32], drifts: &[f32]) {
    let rows = scores.numbers.chunks_exact_mut(scores.step);
    let rows = rows.zip(slopes.numbers.chunks_exact_mut(slopes.step));
    for ((row, slopes), (log_sum, drift)) in rows.zip(log_sums.iter().zip(drifts)) {
        let (row, slopes) = (row.as_mut_ptr(), slopes.as_mut_ptr());
        // SAFETY: the caller has asserted that both rows have `len` numbers: whole registers.
        unsafe {
            let (log_sum, drift) = (V::splat(*log_sum), V::splat(*drift));
            let mut at = 0;
            while at + GROUP * V::COUNT <= scores.len {
                part_back::<V, GROUP>(row.add(at), slopes.add(at), log_sum, drift);
                at += GROUP * V::COUNT;
            }
            while at < scores.len {
                part_back::<V, 1>(row.add(at), slopes.add(at), log_sum, drift);
                at += V::COUNT;
            }
        }
    }
}

/// N registers of a row.
#[inline(always)]
unsafe fn part_back<V: Simd, const N: usize>(scores: *mut f32, slopes: *mut f32, log_sum: V, drift: V) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut x = [log_sum; N];
        for (i, x) in x.iter_mut().enumerate() {
            *x = V::load(scores.add(i * V::COUNT)).sub(log_sum);
        }
        for (i, weight) in exp2(x, EXACT).into_iter().enumerate() {
            weight.store(scores.add(i * V::COUNT));
            let slope = V::load(slopes.add(i * V::COUNT)).sub(drift);
            weight.mul(slope).store(slopes.add(i * V::COUNT));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256, __m512};

    use super::{Running, Tile, soften_back_with, soften_with};

    macro_rules! compiled {
        ($features:literal, $vector:ty, $soften:ident, $soften_back:ident) => {
            /// # Safety
            /// The conditions that `soften` checks.
            #[target_feature(enable = $features)]
            pub unsafe fn $soften(scores: Tile, running: &mut [Running], out: Tile) {
                // SAFETY: guaranteed by the caller.
                unsafe { soften_with::<$vector>(scores, running, out) }
            }

            /// # Safety
            /// The conditions that `soften_back` checks.
            #[target_feature(enable = $features)]
            pub unsafe fn $soften_back(scores: Tile, slopes: Tile, log_sums: &[f32], drifts: &[f32]) {
                // SAFETY: guaranteed by the caller.
                unsafe { soften_back_with::<$vector>(scores, slopes, log_sums, drifts) }
            }
        };
    }
    compiled!("avx512f", __m512, soften_avx512, soften_back_avx512);
    compiled!("avx2,fma", __m256, soften_avx2, soften_back_avx2);
}
