//! Expected results of kernels: a number in f64, and the error that f32 arithmetic may have.
//!
//! Each number comes with its size, the sum of the absolute values that were added up. A kernel may be off by some
//! roundings of that, a rounding being 2^-24; where it stores bf16, by half a unit in the last place of bf16 besides.

use candle_core::DType;
use half::bf16;
use vtrain::rng::Rng;

pub const BOTH: [DType; 2] = [DType::F32, DType::BF16];

const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// A number and its size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exact {
    pub value: f64,
    pub size: f64,
}

impl Exact {
    pub fn new(value: f64, size: f64) -> Self {
        Self { value, size }
    }

    /// The sum of such terms.
    pub fn sum(terms: impl IntoIterator<Item = f64>) -> Self {
        terms.into_iter().fold(Self::default(), |sum, term| Self {
            value: sum.value + term,
            size: sum.size + term.abs(),
        })
    }
}

/// Random numbers, rounded to a type.
pub fn draw(rng: &mut Rng, count: usize, dtype: DType) -> Vec<f64> {
    rng.randn(count)
        .into_iter()
        .map(|x| rounded(f64::from(x), dtype))
        .collect()
}

pub fn rounded(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => bf16::from_f64(x).to_f64(),
        DType::F32 => f64::from(x as f32),
        other => panic!("kernels do not store {other:?}"),
    }
}

/// Half a unit in the last place of bf16, 8 bits of which are significant.
fn half_unit(x: f64) -> f64 {
    let exponent = x.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    (exponent - 8.0).exp2()
}

/// Fails unless all numbers are as they should be, within so many roundings of their sizes.
#[track_caller]
pub fn assert_exact(what: &str, found: &[f64], expected: &[Exact], dtype: DType, roundings: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, exact)) in found.iter().zip(expected).enumerate() {
        let cost = roundings * ROUNDING * exact.size + f64::from(f32::MIN_POSITIVE);
        let stored = match dtype {
            DType::BF16 => half_unit(exact.value.abs() + cost),
            _ => 0.0,
        };
        let off = (found - exact.value).abs();
        let near = match exact.value.is_finite() {
            true => off <= cost + stored, // false for what is no number
            false => *found == exact.value,
        };
        assert!(
            near,
            "{what}: number {at} is {found:e} and not {:e}: off by {:.1} roundings of {:.1e}, {roundings} are allowed",
            exact.value,
            (off - stored) / ROUNDING / exact.size,
            exact.size
        );
    }
}
