//! Parts of a stored matrix: tensors of a safetensors file, as bytes.

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Result, bail};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::ops::bytes::{Bytes, Origin};

/// A checkpoint's tensors, by name.
pub trait Parts {
    /// Returns the tensor `name`.
    ///
    /// # Errors
    /// Fails if there is none.
    fn part(&self, name: &str) -> Result<TensorView<'_>>;

    /// Returns where its bytes lie in a file, if that is known.
    fn origin(&self, _name: &str) -> Option<Origin> {
        None
    }
}

impl Parts for MmapedSafetensors {
    fn part(&self, name: &str) -> Result<TensorView<'_>> {
        self.get(name)
    }
}

impl Parts for SafeTensors<'_> {
    fn part(&self, name: &str) -> Result<TensorView<'_>> {
        Ok(self.tensor(name)?)
    }
}

/// Copies the bytes of a matrix of codes, each of which has a byte.
pub(super) fn matrix(parts: &dyn Parts, name: &str, dtype: Dtype, shape: (usize, usize)) -> Result<Bytes> {
    let part = parts.part(name)?;
    if part.dtype() != dtype || part.shape() != [shape.0, shape.1] {
        bail!(
            "the tensor {name} should be {dtype:?} {shape:?}, but is {:?} {:?}",
            part.dtype(),
            part.shape()
        );
    }
    Ok(Bytes::from(part.data().to_vec()).with_origin(parts.origin(name)))
}

/// Copies a tensor's bytes, of which there must be `count`; `dtype` is its type, if that matters.
pub(super) fn codes(parts: &dyn Parts, name: &str, dtype: Option<Dtype>, count: usize) -> Result<Bytes> {
    let part = parts.part(name)?;
    if dtype.is_some_and(|dtype| dtype != part.dtype()) || part.data().len() != count {
        bail!(
            "the tensor {name} should be {count} bytes, but is {:?} {:?}",
            part.dtype(),
            part.shape()
        );
    }
    Ok(Bytes::from(part.data().to_vec()).with_origin(parts.origin(name)))
}

/// Reads a tensor of numbers with a point, of which there must be `count`.
pub(super) fn floats(parts: &dyn Parts, name: &str, count: usize) -> Result<Vec<f32>> {
    let part = parts.part(name)?;
    let numbers = numbers(&part);
    match numbers {
        Some(numbers) if numbers.len() == count => Ok(numbers),
        _ => bail!(
            "the tensor {name} should be {count} numbers in f32, f16 or bf16, but is {:?} {:?}",
            part.dtype(),
            part.shape()
        ),
    }
}

fn numbers(part: &TensorView) -> Option<Vec<f32>> {
    let (pairs, fours) = (part.data().as_chunks::<2>().0, part.data().as_chunks::<4>().0);
    match part.dtype() {
        Dtype::F32 => Some(fours.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
        Dtype::F16 => Some(pairs.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()),
        Dtype::BF16 => Some(pairs.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()),
        _ => None,
    }
}

/// Reads a tensor whose bytes are JSON.
pub(super) fn json<T: serde::de::DeserializeOwned>(parts: &dyn Parts, name: &str) -> Result<T> {
    let part = parts.part(name)?;
    match serde_json::from_slice(part.data()) {
        Ok(value) => Ok(value),
        Err(error) => bail!("the tensor {name} is not the JSON that it should be: {error}"),
    }
}

/// Returns the number of a matrix's elements.
///
/// # Errors
/// Fails if there is no such number.
pub(super) fn elements(name: &str, (out_features, features): (usize, usize)) -> Result<usize> {
    match out_features.checked_mul(features) {
        Some(count) => Ok(count),
        None => bail!("{name}: a matrix of {out_features} x {features} is too large"),
    }
}
