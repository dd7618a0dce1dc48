//! Matrices of bitsandbytes in 8 bits: `Linear8bitLt` of bitsandbytes 0.50, LLM.int8() (arXiv:2208.07339).
//!
//! ```text
//! w = q SCB[row] / 127        q = round(127 w / SCB[row]), SCB the row's largest magnitude, both of w in f16
//! ```
//!
//! A checkpoint has `X.weight` i8 (out, in), `X.SCB` f32 (out), and `X.weight_format` u8, which is 0. The original also
//! rounds activations to 8 bits, on a GPU; here the product is that of the decoded matrix, which is closer to the
//! unquantised one.

use candle_core::{Device, Result, Tensor, bail};
use half::f16;
use safetensors::tensor::Dtype;

use super::launch::KernelForm;
use super::part::{self, Parts};
use super::scales::{self, Scales};
use super::{Decode, Stored, numbers_to_store};
use crate::ops::bytes::Bytes;

/// The largest code.
const LARGEST: f32 = 127.0;

/// Numbers in 8 bits, with the largest magnitude of each row.
#[derive(Clone)]
pub struct Int8Rows {
    /// A code a byte, signed.
    pub codes: Bytes,
    absmax: Scales,
}

impl Int8Rows {
    /// Returns the largest magnitude of each row.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax.numbers
    }
}

impl Decode for Int8Rows {
    fn name(&self) -> String {
        "bitsandbytes int8".into()
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.absmax.bytes()
    }

    fn decode(&self, first: usize, numbers: &mut [f32]) {
        self.absmax.pieces(first, numbers, |row, at, piece| {
            let absmax = self.absmax.numbers[row];
            for (number, code) in piece.iter_mut().zip(&self.codes[at..]) {
                *number = f32::from(code.cast_signed()) * absmax * (1.0 / LARGEST);
            }
        });
    }

    fn kernel_form(&self) -> KernelForm {
        self.absmax
            .kernel_form(&self.codes, &scales::signed(), None, 1.0 / LARGEST)
    }

    fn parts(&mut self) -> Vec<&mut Bytes> {
        vec![&mut self.codes, &mut self.absmax.numbers.0]
    }
}

/// Reads the layer `layer`, such as `blocks.0.ff`.
///
/// # Errors
/// Fails for parts that are missing or of another size, and for a layout other than by rows.
pub fn read(parts: &dyn Parts, layer: &str, shape: (usize, usize), device: &Device) -> Result<Stored<Int8Rows>> {
    let (weight, format) = (format!("{layer}.weight"), format!("{layer}.weight_format"));
    // Files of the first versions have none, and are by rows.
    if let Ok(part) = parts.part(&format)
        && part.data() != [0]
    {
        bail!(
            "the tensor {format} is {:?}, but only matrices by rows, 0, are read",
            part.data()
        );
    }
    let format = Int8Rows {
        codes: part::matrix(parts, &weight, Dtype::I8, shape)?,
        absmax: Scales::new(
            part::floats(parts, &format!("{layer}.SCB"), shape.0)?,
            shape.1,
            (1, shape.1),
        ),
    };
    Ok(Stored::new(format, shape, device))
}

/// Stores a dense matrix.
///
/// # Errors
/// Fails for NaN, infinities, and what is infinite in f16.
pub fn quantize(dense: &Tensor, device: &Device) -> Result<Stored<Int8Rows>> {
    let half = dense.to_dtype(candle_core::DType::F16)?;
    let (numbers, shape) = numbers_to_store(&half)?;
    let (mut codes, mut absmax) = (Vec::with_capacity(numbers.len()), Vec::new());
    for row in numbers.chunks(shape.1.max(1)) {
        let largest = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let factor = 1.0 / largest * LARGEST; // in torch's order: it decides ties
        // A row of zeros has no factor: `as` makes 0 of NaN.
        codes.extend(
            row.iter()
                .map(|x| ((x * factor).round_ties_even() as i8).cast_unsigned()),
        );
        absmax.push(largest);
    }
    absmax.resize(shape.0, f16::ZERO.to_f32()); // rows without columns
    let format = Int8Rows {
        codes: codes.into(),
        absmax: Scales::new(absmax, shape.1, (1, shape.1)),
    };
    Ok(Stored::new(format, shape, device))
}
