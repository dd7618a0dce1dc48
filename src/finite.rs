//! Finds NaN and infinities in stored tensors.
//!
//! A floating-point number is finite unless all bits of its exponent are set (IEEE 754, 3.4). So blocks of bits are
//! checked, without any conversion.

use std::fmt;

use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};
use safetensors::View;

/// Numbers that are checked together.
const STRETCH: usize = 4096;

/// First NaN or infinity of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NotFinite {
    /// Index, from 0, in row-major order.
    pub place: usize,
    /// Value: NaN or an infinity.
    pub value: f64,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at index {}", self.value, self.place)
    }
}

/// A named tensor that holds NaN or an infinity.
#[derive(Debug, Clone, PartialEq)]
pub struct NonfiniteTensor {
    /// Name of the tensor.
    pub name: String,
    /// First such value.
    pub first: NotFinite,
}

impl fmt::Display for NonfiniteTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} holds {}", self.name, self.first)
    }
}

impl std::error::Error for NonfiniteTensor {}

/// Checks that all values of a tensor are finite.
///
/// # Errors
/// Fails with [`NonfiniteTensor`], by this name, and if a device is out of memory.
pub fn check(name: &str, tensor: &Tensor) -> anyhow::Result<()> {
    match first(tensor)? {
        None => Ok(()),
        Some(first) => Err(NonfiniteTensor {
            name: name.into(),
            first,
        }
        .into()),
    }
}

/// Returns the first NaN or infinity of a tensor on any device.
pub fn first(tensor: &Tensor) -> Result<Option<NotFinite>> {
    match tensor.dtype() {
        dtype @ (DType::F64 | DType::F32 | DType::F16 | DType::BF16) => Ok(first_in(&tensor.data(), dtype)),
        _ => Ok(None),
    }
}

/// Returns the first NaN or infinity in little-endian bytes; None for integer types.
pub fn first_in(bytes: &[u8], dtype: DType) -> Option<NotFinite> {
    match dtype {
        DType::F64 => search(bytes, |b| f64::from_le_bytes(b).is_finite(), f64::from_le_bytes),
        DType::F32 => search(
            bytes,
            |b| f32::from_le_bytes(b).is_finite(),
            |b| f32::from_le_bytes(b).into(),
        ),
        DType::F16 => search(
            bytes,
            |b| f16::from_le_bytes(b).is_finite(),
            |b| f16::from_le_bytes(b).into(),
        ),
        DType::BF16 => search(
            bytes,
            |b| bf16::from_le_bytes(b).is_finite(),
            |b| bf16::from_le_bytes(b).into(),
        ),
        _ => None,
    }
}

/// Returns the first non-finite number of `N` bytes.
fn search<const N: usize>(
    bytes: &[u8],
    is_finite: impl Fn([u8; N]) -> bool,
    value: impl Fn([u8; N]) -> f64,
) -> Option<NotFinite> {
    let (numbers, _) = bytes.as_chunks::<N>();
    // Without an early exit, the loop is vectorised.
    let bad = |stretch: &[[u8; N]]| !stretch.iter().fold(true, |all, number| all & is_finite(*number));
    let start = numbers.chunks(STRETCH).position(bad)? * STRETCH;
    let place = start + numbers[start..].iter().position(|number| !is_finite(*number))?;
    Some(NotFinite {
        place,
        value: value(numbers[place]),
    })
}
