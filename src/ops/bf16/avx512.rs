//! Blocks by AVX-512's `vdpbf16ps`.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::left::Left;
use super::line::{Line, SIDE, Sums};

/// Rows at a time, of two vectors each: 16 sums in registers.
const ROWS: usize = 8;

/// Returns true if the processor has the instruction.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw")
}

/// Returns true where it is faster than multiply-adds in f32: on AMD's.
pub fn is_fast() -> bool {
    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"AuthenticAMD"
}

/// As [`super::block::block`].
///
/// # Safety
/// As there; the processor has the instruction.
#[target_feature(enable = "avx512f,avx512bf16")]
pub unsafe fn block(steps: usize, a: Left, b: *const Line, c: &mut Sums, add: bool) {
    for first in (0..SIDE).step_by(ROWS) {
        // SAFETY: the caller's; a block has 32 rows of two vectors.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            if add {
                for (row, sums) in c.0[first..].iter().zip(&mut sums) {
                    *sums = [_mm512_load_ps(row.as_ptr()), _mm512_load_ps(row.as_ptr().add(16))];
                }
            }
            let rows: [*const i32; ROWS] = std::array::from_fn(|row| a.row(first + row).cast());
            for step in 0..steps {
                let (at, b) = (step * a.step_bytes() / 4, b.add(step * SIDE));
                for pair in 0..16 {
                    let left: __m512bh = transmute(_mm512_load_si512(b.add(pair).cast()));
                    let right: __m512bh = transmute(_mm512_load_si512(b.add(16 + pair).cast()));
                    for (row, sums) in rows.iter().zip(&mut sums) {
                        let a: __m512bh = transmute(_mm512_set1_epi32(row.add(at + pair).read_unaligned()));
                        sums[0] = _mm512_dpbf16_ps(sums[0], a, left);
                        sums[1] = _mm512_dpbf16_ps(sums[1], a, right);
                    }
                }
            }
            for (row, sums) in c.0[first..].iter_mut().zip(sums) {
                _mm512_store_ps(row.as_mut_ptr(), sums[0]);
                _mm512_store_ps(row.as_mut_ptr().add(16), sums[1]);
            }
        }
    }
}
