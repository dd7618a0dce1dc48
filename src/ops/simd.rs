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

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable vectors",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512",
        }
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
    /// # Safety
    /// The processor has the register.
    unsafe fn add(self, other: Self) -> Self;
    /// # Safety
    /// The processor has the register.
    unsafe fn sub(self, other: Self) -> Self;
    /// # Safety
    /// The processor has the register.
    unsafe fn mul(self, other: Self) -> Self;
    /// The larger number of each two; where one is NaN, that of `other`.
    ///
    /// # Safety
    /// The processor has the register.
    unsafe fn max(self, other: Self) -> Self;
    /// True if one number at least is larger than that of `other`.
    ///
    /// # Safety
    /// The processor has the register.
    unsafe fn any_above(self, other: Self) -> bool;
    /// 2^n for numbers 1.5 2^23 + n, n of -127 (for which it is 0) to 127.
    ///
    /// # Safety
    /// The processor has the register.
    unsafe fn power_of_two(self) -> Self;
    /// The largest number of all, none of which is NaN.
    ///
    /// # Safety
    /// The processor has the register.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        const WIDEST: usize = 16;
        let mut numbers = [f32::NEG_INFINITY; WIDEST];
        // SAFETY: no register is wider.
        unsafe { self.store(numbers.as_mut_ptr()) };
        numbers.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
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
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] * other[i])
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] > other[i] { self[i] } else { other[i] })
    }
    #[inline(always)]
    unsafe fn any_above(self, other: Self) -> bool {
        self.iter().zip(&other).any(|(a, b)| a > b)
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        self.map(|shifted| f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits())))
    }
}

/// A register of AVX-512 in plain Rust, bit by bit.
#[derive(Debug, Clone, Copy)]
pub struct Fused(pub [f32; 16]);

impl Simd for Fused {
    const COUNT: usize = 16;
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: guaranteed by the caller.
        Self(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 16])
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * other.0[i]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        let larger = |i: usize| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] };
        Self(std::array::from_fn(larger))
    }
    #[inline(always)]
    unsafe fn any_above(self, other: Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a > b)
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        Self(
            self.0
                .map(|shifted| f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()))),
        )
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    macro_rules! lanes {
        ($vector:ty, $count:expr, $load:ident, $store:ident, $splat:ident, $fma:ident, $add:ident, $sub:ident, $mul:ident,
            $max:ident, $above:expr, $power:expr $(,)?) => {
            // SAFETY (all): guaranteed by the caller.
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
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    unsafe { $add(self, other) }
                }
                #[inline(always)]
                unsafe fn sub(self, other: Self) -> Self {
                    unsafe { $sub(self, other) }
                }
                #[inline(always)]
                unsafe fn mul(self, other: Self) -> Self {
                    unsafe { $mul(self, other) }
                }
                #[inline(always)]
                unsafe fn max(self, other: Self) -> Self {
                    unsafe { $max(self, other) }
                }
                #[inline(always)]
                unsafe fn any_above(self, other: Self) -> bool {
                    unsafe { $above(self, other) }
                }
                #[inline(always)]
                unsafe fn power_of_two(self) -> Self {
                    unsafe { $power(self) }
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
        _mm256_fmadd_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_max_ps,
        |a, b| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) != 0,
        |shifted| _mm256_castsi256_ps(_mm256_add_epi32(
            _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted)),
            _mm256_castps_si256(_mm256_set1_ps(1.0)),
        )),
    );
    lanes!(
        __m512,
        16,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_max_ps,
        |a, b| _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0,
        |shifted| _mm512_castsi512_ps(_mm512_add_epi32(
            _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted)),
            _mm512_castps_si512(_mm512_set1_ps(1.0)),
        )),
    );
}
