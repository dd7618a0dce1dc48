//! Vector registers of the innermost loops.

/// Instruction sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Any processor.
    Portable,
    /// AVX2 and FMA: 8 numbers of f32.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512: 16 numbers of f32.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Returns the instruction sets of this machine, the widest first.
    pub fn available() -> Vec<Self> {
        let mut available = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                available.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                available.push(Self::Avx2);
            }
        }
        available.push(Self::Portable);
        available
    }

    /// Returns the widest.
    pub fn detect() -> Self {
        Self::available()[0]
    }
}

/// A vector register.
pub trait Simd: Copy {
    /// Numbers of f32 in a register.
    const COUNT: usize;
    /// # Safety
    /// `COUNT` numbers can be read there, and the processor has the register.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `COUNT` numbers can be written there, and the processor has the register.
    unsafe fn store(self, to: *mut f32);
    /// # Safety
    /// The processor has the register.
    unsafe fn splat(value: f32) -> Self;
    /// self + a * b
    ///
    /// # Safety
    /// The processor has the register.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}

impl Simd for [f32; 8] {
    const COUNT: usize = 8;
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] + a[i] * b[i])
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    macro_rules! lanes {
        ($vector:ty, $count:expr, $load:ident, $store:ident, $splat:ident, $fma:ident) => {
            // SAFETY (all four): guaranteed by the caller.
            impl Simd for $vector {
                const COUNT: usize = $count;
                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    unsafe { $load(from) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    unsafe { $store(to, self) }
                }
                #[inline(always)]
                unsafe fn splat(value: f32) -> Self {
                    unsafe { $splat(value) }
                }
                #[inline(always)]
                unsafe fn add_product(self, a: Self, b: Self) -> Self {
                    unsafe { $fma(a, b, self) }
                }
            }
        };
    }
    lanes!(
        __m256,
        8,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps
    );
    lanes!(
        __m512,
        16,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps
    );
}
