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
    let dtype = tensor.dtype();
    if !dtype.is_float() {
        return Ok(None);
    }
    Ok(first_in(&tensor.data(), dtype))
}

/// The first number that is none among those that these bytes are, little-endian; none in formats of whole numbers.
pub fn first_in(bytes: &[u8], dtype: DType) -> Option<NotFinite> {
    let found = |place: Option<usize>, value: fn(&[u8]) -> f64, width: usize| {
        let place = place?;
        let value = value(&bytes[place * width..(place + 1) * width]);
        Some(NotFinite { place, value })
    };
    match dtype {
        DType::F64 => found(search(bytes, |b: [u8; 8]| f64::from_le_bytes(b).is_finite()), |b| {
            b.try_into().map_or(f64::NAN, f64::from_le_bytes)
        }, 8),
        DType::F32 => found(search(bytes, |b: [u8; 4]| f32::from_le_bytes(b).is_finite()), |b| {
            b.try_into().map_or(f64::NAN, |b| f32::from_le_bytes(b).into())
        }, 4),
        DType::F16 => found(search(bytes, |b: [u8; 2]| f16::from_le_bytes(b).is_finite()), |b| {
            b.try_into().map_or(f64::NAN, |b| f16::from_le_bytes(b).into())
        }, 2),
        DType::BF16 => found(search(bytes, |b: [u8; 2]| bf16::from_le_bytes(b).is_finite()), |b| {
            b.try_into().map_or(f64::NAN, |b| bf16::from_le_bytes(b).into())
        }, 2),
        _ => None,
    }
}

/// The place of the first number of `N` bytes that is not finite.
fn search<const N: usize>(bytes: &[u8], is_finite: impl Fn([u8; N]) -> bool) -> Option<usize> {
    let (numbers, _) = bytes.as_chunks::<N>();
    let is_finite = |number: &[u8; N]| is_finite(*number);
    // Without a way out in between, a stretch is looked at many numbers at once.
    let bad = |stretch: &[[u8; N]]| !stretch.iter().fold(true, |all, number| all & is_finite(number));
    let stretch = numbers.chunks(STRETCH).position(bad)?;
    let within = numbers[stretch * STRETCH..].iter().position(|number| !is_finite(number))?;
    Some(stretch * STRETCH + within)
}
