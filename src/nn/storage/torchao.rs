//! Matrices of torchao 0.16 and later: `Int8WeightOnlyConfig` and `Float8WeightOnlyConfig`, as diffusers saves them in
//! safetensors.
//!
//! ```text
//! int8:   w = (q - zero_point) scale     float8: w = e4m3(q) scale
//! ```
//!
//! A file has `X._weight_qdata` (out, in), `X._weight_scale` (a side for each side, or one number), maybe
//! `X._weight_zero_point`, and in its header's metadata, under `X.weight`, JSON that names the kind and the parts.
//! Where a file also wants activations to be rounded, the product here is that of the decoded matrix all the same.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use super::float8::{self, Float8, Float8Kind};
use super::launch::KernelForm;
use super::part::{self, Parts};
use super::scales::{self, Scales};
use super::{Decode, Stored, numbers_to_store};
use crate::ops::bytes::Bytes;

/// Half the distance of the smallest and the largest code in 8 bits.
const HALF_RANGE: f32 = 127.5;

/// Numbers in 8 bits, with scales.
#[derive(Clone)]
pub struct Int8 {
    /// A code a byte, signed.
    pub codes: Bytes,
    scales: Scales,
    /// The code of 0, for each scale; none if it is 0 everywhere.
    zero_points: Option<Bytes>,
}

impl Int8 {
    /// Returns the scales.
    pub fn scales(&self) -> &[f32] {
        &self.scales.numbers
    }
}

impl Decode for Int8 {
    fn name(&self) -> String {
        "torchao int8".into()
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes() + self.zero_points.as_ref().map_or(0, |zeros| zeros.len())
    }

    fn decode(&self, first: usize, numbers: &mut [f32]) {
        self.scales.pieces(first, numbers, |at_scale, at, piece| {
            let scale = self.scales.numbers[at_scale];
            let zero = self
                .zero_points
                .as_ref()
                .map_or(0, |zeros| zeros[at_scale].cast_signed());
            for (number, code) in piece.iter_mut().zip(&self.codes[at..]) {
                *number = (f32::from(code.cast_signed()) - f32::from(zero)) * scale;
            }
        });
    }

    fn kernel_form(&self) -> KernelForm {
        let zeros = self.zero_points.as_deref();
        self.scales.kernel_form(&self.codes, &scales::signed(), zeros, 1.0)
    }

    fn parts(&mut self) -> Vec<&mut Bytes> {
        let parts = [&mut self.codes, &mut self.scales.numbers.0];
        parts.into_iter().chain(&mut self.zero_points).collect()
    }
}

/// Names of the parts of the matrix `path`, which ends in `.weight`.
pub(super) fn part_name(path: &str, part: &str) -> String {
    let (layer, name) = path.rsplit_once('.').unwrap_or(("", path));
    let dot = if layer.is_empty() { "" } else { "." };
    format!("{layer}{dot}_{name}_{part}")
}

/// Reads the matrix `path` in int8.
///
/// # Errors
/// Fails for parts that are missing or of another size.
pub fn read_int8(parts: &dyn Parts, path: &str, shape: (usize, usize), device: &Device) -> Result<Stored<Int8>> {
    let name = |part: &str| part_name(path, part);
    let codes = part::matrix(parts, &name("qdata"), Dtype::I8, shape)?;
    let scales = Scales::read(parts, &name("scale"), shape)?;
    let zero_points = match parts.part(&name("zero_point")) {
        Err(_) => None,
        Ok(_) => {
            let zeros = part::codes(parts, &name("zero_point"), Some(Dtype::I8), scales.numbers.len())?;
            zeros.iter().any(|zero| *zero != 0).then_some(zeros)
        }
    };
    let format = Int8 {
        codes,
        scales,
        zero_points,
    };
    Ok(Stored::new(format, shape, device))
}

/// Reads the matrix `path` in float8.
///
/// # Errors
/// Fails for parts that are missing or of another size.
pub fn read_float8(parts: &dyn Parts, path: &str, shape: (usize, usize), device: &Device) -> Result<Stored<Float8>> {
    let (qdata, scale) = (part_name(path, "qdata"), part_name(path, "scale"));
    float8::read(parts, &qdata, Some(&scale), shape, device)
}

/// Stores a dense matrix in int8 with a scale a row: the row's largest magnitude over 127.5, rounded to the type of
/// `dense`.
///
/// # Errors
/// Fails for NaN and infinities.
pub fn quantize_int8(dense: &Tensor, device: &Device) -> Result<Stored<Int8>> {
    let (numbers, shape) = numbers_to_store(dense)?;
    let scales = row_scales(&numbers, shape, HALF_RANGE, dense.dtype());
    let scales: Vec<f32> = scales.into_iter().map(|scale| scale.max(f32::EPSILON)).collect();
    let mut codes = vec![0; numbers.len()];
    let rows = numbers
        .par_chunks(shape.1.max(1))
        .zip(codes.par_chunks_mut(shape.1.max(1)));
    rows.zip(&scales).for_each(|((row, codes), scale)| {
        let inverse = 1.0 / scale; // torchao multiplies; `as` ends at -128 and 127
        for (code, x) in codes.iter_mut().zip(row) {
            *code = ((x * inverse).round_ties_even() as i8).cast_unsigned();
        }
    });
    let format = Int8 {
        codes: codes.into(),
        scales: Scales::new(scales, shape.1, (1, shape.1)),
        zero_points: None,
    };
    Ok(Stored::new(format, shape, device))
}

/// Stores a dense matrix in e4m3 with a scale a row: the row's largest magnitude over 448, rounded to the type of
/// `dense`. A row of zeros has the scale 1.
///
/// # Errors
/// Fails for NaN and infinities.
pub fn quantize_float8(dense: &Tensor, device: &Device) -> Result<Stored<Float8>> {
    let (mut numbers, shape) = numbers_to_store(dense)?;
    let scales = row_scales(&numbers, shape, float8::LARGEST, dense.dtype());
    let scales: Vec<f32> = scales
        .into_iter()
        .map(|scale| if scale > 0.0 { scale } else { 1.0 })
        .collect();
    let rows = numbers.par_chunks_mut(shape.1.max(1)).zip(&scales);
    rows.for_each(|(row, scale)| row.iter_mut().for_each(|x| *x /= scale));
    let scales = Scales::new(scales, shape.1, (1, shape.1));
    let format = Float8::new(Float8Kind::E4M3, float8::e4m3(numbers)?.into(), Some(scales));
    Ok(Stored::new(format, shape, device))
}

/// Returns each row's largest magnitude over `range`, as computed in this type.
fn row_scales(numbers: &[f32], (rows, columns): (usize, usize), range: f32, dtype: DType) -> Vec<f32> {
    let rounded = |scale: f32| match dtype {
        DType::BF16 => bf16::from_f32(scale).to_f32(),
        DType::F16 => half::f16::from_f32(scale).to_f32(),
        _ => scale,
    };
    let scale = |row: &[f32]| rounded(row.iter().fold(0f32, |most, x| most.max(x.abs())) / range);
    let mut scales: Vec<f32> = numbers.par_chunks(columns.max(1)).map(scale).collect();
    scales.resize(rows, 0.0); // rows without columns
    scales
}
