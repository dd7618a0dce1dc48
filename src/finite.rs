//! Numbers that are none, NaN and the infinities, found in tensors as they are stored.
//!
//! A number of floating point is finite unless all bits of its exponent are set (IEEE 754, 3.4). So bits are looked at, a
//! stretch at a time, and nothing is converted.

use std::fmt;

use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};
use safetensors::View;

/// Numbers that are looked at together.
const STRETCH: usize = 4096;

/// The first number of a tensor that is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NotFinite {
    /// Its place, from 0, in row-major order.
    pub place: usize,
    pub value: f64,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at place {}", self.value, self.place)
    }
}

/// A named tensor that holds a number that is none.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub name: String,
    pub first: NotFinite,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} holds {}", self.name, self.first)
    }
}

impl std::error::Error for Held {}

/// Refuses a tensor that is not finite.
///
/// # Errors
/// [`Held`], by this name; out of memory on a device.
pub fn check(name: &str, tensor: &Tensor) -> anyhow::Result<()> {
    match first(tensor)? {
        None => Ok(()),
        Some(first) => Err(Held {
            name: name.into(),
            first,
        }
        .into()),
    }
}

/// The first number of a tensor on any device that is none.
pub fn first(tensor: &Tensor) -> Result<Option<NotFinite>> {
    match tensor.dtype() {
        dtype @ (DType::F64 | DType::F32 | DType::F16 | DType::BF16) => Ok(first_in(&tensor.data(), dtype)),
        _ => Ok(None),
    }
}

/// The first number that is none among those that these bytes are, little-endian; none in formats of whole numbers.
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

/// The first number of `N` bytes that is not finite.
fn search<const N: usize>(
    bytes: &[u8],
    is_finite: impl Fn([u8; N]) -> bool,
    value: impl Fn([u8; N]) -> f64,
) -> Option<NotFinite> {
    let (numbers, _) = bytes.as_chunks::<N>();
    // Without a way out in between, many numbers are looked at at once.
    let bad = |stretch: &[[u8; N]]| !stretch.iter().fold(true, |all, number| all & is_finite(*number));
    let start = numbers.chunks(STRETCH).position(bad)? * STRETCH;
    let place = start + numbers[start..].iter().position(|number| !is_finite(*number))?;
    Some(NotFinite {
        place,
        value: value(numbers[place]),
    })
}
