//! Innermost loops for each instruction set.
//!
//! A tile holds the sums of MR pixels and NV vectors of output channels in registers while it walks the taps: `out[p,
//! n] += sum_k a[p, k] * b[k, n]`, a broadcast of `a` for every NV multiply-adds, a load of `b` for every MR. With
//! AVX-512, 6 pixels of 64 channels and 12 pixels of 32 were equally fast.
//!
//! An [`Isa`] must be one of [`Isa::available`], which `Conv3d::direct` checks.

use crate::ops::simd::{Isa, Simd};

impl Isa {
    /// Returns the output channels of a tile, for a convolution with `channels` of them.
    pub fn tile_width(self, channels: usize) -> usize {
        match self {
            // 96 channels are three tiles of 32; two tiles of 64 would waste a quarter.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 if channels.next_multiple_of(64) == channels.next_multiple_of(32) => 64,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 if channels > 16 => 32,
            _ => 16,
        }
    }
}

/// `len` consecutive values of every pixel, `offset` after the pixel's first.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub offset: usize,
    pub len: usize,
}

/// One row of pixels against one panel of weights.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// Inputs; pixel `p` starts at `start + p * step`.
    pub input: &'a [f32],
    pub start: usize,
    pub step: usize,
    pub pixels: usize,
    pub runs: &'a [Run],
    /// Weights: `width` output channels for every value of every run.
    pub panel: &'a [Line],
    pub width: usize,
}

/// Sixteen floats in one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [f32; 16]);

/// Adds to the sums of `row.pixels` pixels, `out_step` apart in `out`.
pub fn multiply_add(isa: Isa, row: &Row, out: &mut [f32], out_step: usize) {
    if row.pixels == 0 {
        return;
    }
    let reach = row.runs.iter().map(|run| run.offset + run.len).max().unwrap_or(0);
    let depth: usize = row.runs.iter().map(|run| run.len).sum();
    assert!(row.start + (row.pixels - 1) * row.step + reach <= row.input.len());
    assert!((row.pixels - 1) * out_step + row.width <= out.len());
    assert!(depth * row.width <= row.panel.len() * 16);
    // SAFETY: the three assertions bound every access of the tiles; the instructions were detected.
    unsafe {
        match (isa, row.width) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 64) => x86::avx512_64(row, out.as_mut_ptr(), out_step),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 32) => x86::avx512_32(row, out.as_mut_ptr(), out_step),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 16) => x86::avx512_16(row, out.as_mut_ptr(), out_step),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, 16) => x86::avx2_16(row, out.as_mut_ptr(), out_step),
            (Isa::Portable, 16) => tiles::<[f32; 8], 2, 4>(row, out.as_mut_ptr(), out_step),
            (isa, width) => unreachable!("{isa:?} has no tiles of {width}"),
        }
    }
}

/// Computes `y = silu(x * factor * scale + shift)` channel by channel, where silu(x) = x / (1 + exp(-x)).
pub fn scale_shift_silu(isa: Isa, x: &[f32], factor: f32, scale: &[f32], shift: &[f32], y: &mut [f32]) {
    match isa {
        // SAFETY: the instructions were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::silu_avx512(x, factor, scale, shift, y) },
        // SAFETY: the instructions were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::silu_avx2(x, factor, scale, shift, y) },
        Isa::Portable => silu_loop(x, factor, scale, shift, y),
    }
}

/// Returns the sum of squares.
pub fn square_sum(isa: Isa, x: &[f32]) -> f32 {
    match isa {
        // SAFETY: the instructions were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::square_sum_avx512(x) },
        // SAFETY: the instructions were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::square_sum_avx2(x) },
        Isa::Portable => square_sum_loop(x),
    }
}

/// Adds `x - pivot` and its square to running sums, channel by channel, over the pixels of `x`.
pub fn moments(isa: Isa, x: &[f32], pivot: &[f32], sum: &mut [f32], squares: &mut [f32]) {
    match isa {
        // SAFETY: the instructions were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::moments_avx512(x, pivot, sum, squares) },
        // SAFETY: the instructions were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::moments_avx2(x, pivot, sum, squares) },
        Isa::Portable => moments_loop(x, pivot, sum, squares),
    }
}

#[inline(always)]
fn moments_loop(x: &[f32], pivot: &[f32], sum: &mut [f32], squares: &mut [f32]) {
    for pixel in x.chunks_exact(pivot.len().max(1)) {
        for (((x, pivot), sum), squares) in pixel.iter().zip(pivot).zip(sum.iter_mut()).zip(squares.iter_mut()) {
            let d = x - pivot;
            *sum += d;
            *squares += d * d;
        }
    }
}

/// Sums squares in sixteen independent sums, which the compiler vectorises.
#[inline(always)]
fn square_sum_loop(x: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (stretches, rest) = x.as_chunks::<16>();
    for stretch in stretches {
        sums.iter_mut().zip(stretch).for_each(|(sum, x)| *sum += x * x);
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
}

#[inline(always)]
fn silu_loop(x: &[f32], factor: f32, scale: &[f32], shift: &[f32], y: &mut [f32]) {
    for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
        let x = x * factor * scale + shift;
        *y = x / (1.0 + exp(-x));
    }
}

/// Returns e^x to about 2 units in the last place, without branches: 2^n * e^r with |r| <= ln(2)/2 and e^r by its
/// series. Constant beyond +-87.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln(2) in two parts, so that n * ln(2) loses nothing.
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let series = 1.0 / 5040.0;
    let series = series * r + 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    series * power
}

/// Covers a row with tiles of MR pixels, and the remainder with smaller ones.
#[inline(always)]
unsafe fn tiles<V: Simd, const NV: usize, const MR: usize>(row: &Row, out: *mut f32, out_step: usize) {
    let mut pixel = 0;
    // SAFETY: `pixel` and the tile's pixels stay below `row.pixels`; the caller has checked the rest.
    unsafe {
        while pixel < row.pixels {
            let input = row.input.as_ptr().add(row.start + pixel * row.step);
            let out = out.add(pixel * out_step);
            let left = row.pixels - pixel;
            pixel += if left >= MR {
                tile::<V, NV, MR>(row, input, out, out_step);
                MR
            } else if MR > 6 && left >= 6 {
                tile::<V, NV, 6>(row, input, out, out_step);
                6
            } else if MR > 4 && left >= 4 {
                tile::<V, NV, 4>(row, input, out, out_step);
                4
            } else if left >= 2 {
                tile::<V, NV, 2>(row, input, out, out_step);
                2
            } else {
                tile::<V, NV, 1>(row, input, out, out_step);
                1
            };
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Simd, const NV: usize, const MR: usize>(
    row: &Row,
    input: *const f32,
    out: *mut f32,
    out_step: usize,
) {
    // SAFETY: the caller has checked that MR pixels, all runs and the whole panel are within their slices.
    unsafe {
        let mut sums = [[V::splat(0.0); NV]; MR];
        for (p, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(out.add(p * out_step + v * V::COUNT));
            }
        }
        let mut panel = row.panel.as_ptr().cast::<f32>();
        for run in row.runs {
            let mut input = input.add(run.offset);
            for _ in 0..run.len {
                let mut b = [V::splat(0.0); NV];
                for (v, b) in b.iter_mut().enumerate() {
                    *b = V::load(panel.add(v * V::COUNT));
                }
                for (p, sums) in sums.iter_mut().enumerate() {
                    let a = V::splat(*input.add(p * row.step));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = sum.add_product(a, b);
                    }
                }
                input = input.add(1);
                panel = panel.add(NV * V::COUNT);
            }
        }
        for (p, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(out.add(p * out_step + v * V::COUNT));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256, __m512};

    use super::{Row, moments_loop, silu_loop, square_sum_loop, tiles};

    macro_rules! row {
        ($name:ident, $feature:literal, $vector:ty, $nv:literal, $mr:literal) => {
            /// # Safety
            /// The conditions that `multiply_add` checks.
            #[target_feature(enable = $feature)]
            pub unsafe fn $name(row: &Row, out: *mut f32, out_step: usize) {
                // SAFETY: guaranteed by the caller.
                unsafe { tiles::<$vector, $nv, $mr>(row, out, out_step) }
            }
        };
    }
    row!(avx512_64, "avx512f", __m512, 4, 6);
    row!(avx512_32, "avx512f", __m512, 2, 12);
    row!(avx512_16, "avx512f", __m512, 1, 12);
    row!(avx2_16, "avx2,fma", __m256, 2, 6);

    #[target_feature(enable = "avx512f")]
    pub fn silu_avx512(x: &[f32], factor: f32, scale: &[f32], shift: &[f32], y: &mut [f32]) {
        silu_loop(x, factor, scale, shift, y);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn silu_avx2(x: &[f32], factor: f32, scale: &[f32], shift: &[f32], y: &mut [f32]) {
        silu_loop(x, factor, scale, shift, y);
    }

    #[target_feature(enable = "avx512f")]
    pub fn square_sum_avx512(x: &[f32]) -> f32 {
        square_sum_loop(x)
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn square_sum_avx2(x: &[f32]) -> f32 {
        square_sum_loop(x)
    }

    #[target_feature(enable = "avx512f")]
    pub fn moments_avx512(x: &[f32], pivot: &[f32], sum: &mut [f32], squares: &mut [f32]) {
        moments_loop(x, pivot, sum, squares);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn moments_avx2(x: &[f32], pivot: &[f32], sum: &mut [f32], squares: &mut [f32]) {
        moments_loop(x, pivot, sum, squares);
    }
}
