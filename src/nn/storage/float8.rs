//! Matrices in fp8, plain and with scales: diffusers' layerwise casting, musubi-tuner's and ComfyUI's `fp8_scaled`.
//!
//! ```text
//! w = fp8(code) scale        e4m3: (-1)^s 2^(e - 7) (1 + m / 8), 2^(-6) m / 8 for e = 0, NaN for s.1111.111
//!                            e5m2: (-1)^s 2^(e - 15) (1 + m / 4), 2^(-14) m / 4 for e = 0, infinities and NaN for e = 31
//! ```
//!
//! arXiv:2209.05433. A checkpoint has `X.weight` and, with scales, `X.scale_weight` or `X.weight_scale`: one for all, one
//! a row (out, 1), or one for each part of a row (out, parts, 1). Newer files of ComfyUI have `X.comfy_quant` as well, JSON
//! that names the format. Scales of activations are for products in fp8, and of no use here.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use super::launch::KernelForm;
use super::part::{self, Parts};
use super::scales::{self, Scales};
use super::{CHUNK, Decode, Stored, numbers_to_store};
use crate::ops::bytes::Bytes;

/// Codes of a byte.
const BYTES: usize = 256;

/// The largest number of e4m3.
pub(super) const LARGEST: f32 = 448.0;

/// A kind of fp8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float8Kind {
    /// 4 bits of exponent, 3 of mantissa, no infinities.
    E4M3,
    /// 5 bits of exponent, 2 of mantissa.
    E5M2,
}

impl Float8Kind {
    /// Returns the kind of a tensor's type; None for others.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F8_E4M3 => Some(Self::E4M3),
            Dtype::F8_E5M2 => Some(Self::E5M2),
            _ => None,
        }
    }

    /// Returns the number of each code.
    pub fn numbers(self) -> Vec<f32> {
        let (mantissa_bits, bias) = match self {
            Self::E4M3 => (3, 7),
            Self::E5M2 => (2, 15),
        };
        (0..=u8::MAX)
            .map(|code| self.number(code, mantissa_bits, bias))
            .collect()
    }

    fn number(self, code: u8, mantissa_bits: u32, bias: i32) -> f32 {
        let magnitude = code & 0x7f;
        let steps = 1 << mantissa_bits;
        let (exponent, mantissa) = (
            i32::from(magnitude >> mantissa_bits),
            f32::from(magnitude & (steps - 1)),
        );
        let fraction = mantissa / f32::from(steps);
        let number = match (self, exponent) {
            (Self::E4M3, _) if magnitude == 0x7f => f32::NAN,
            (Self::E5M2, 31) if mantissa == 0.0 => f32::INFINITY,
            (Self::E5M2, 31) => f32::NAN,
            (_, 0) => 2f32.powi(1 - bias) * fraction,
            _ => 2f32.powi(exponent - bias) * (1.0 + fraction),
        };
        if code > magnitude { -number } else { number }
    }
}

/// Numbers in fp8, with scales.
#[derive(Clone)]
pub struct Float8 {
    kind: Float8Kind,
    /// A code a byte.
    pub codes: Bytes,
    /// The number of each code.
    numbers: Vec<f32>,
    scales: Option<Scales>,
}

impl Float8 {
    pub(super) fn new(kind: Float8Kind, codes: Bytes, scales: Option<Scales>) -> Self {
        Self {
            kind,
            codes,
            numbers: kind.numbers(),
            scales,
        }
    }

    /// Returns the scales; none if it is plain.
    pub fn scales(&self) -> &[f32] {
        self.scales.as_ref().map_or(&[], |scales| &scales.numbers)
    }
}

impl Decode for Float8 {
    fn name(&self) -> String {
        let scaled = if self.scales.is_some() { "scaled " } else { "" };
        format!("{scaled}fp8 {:?}", self.kind)
    }

    fn bytes(&self) -> usize {
        self.codes.len() + BYTES * size_of::<f32>() + self.scales.as_ref().map_or(0, Scales::bytes)
    }

    fn decode(&self, first: usize, numbers: &mut [f32]) {
        let number = |code: u8| self.numbers[usize::from(code)];
        let Some(scales) = &self.scales else {
            for (x, code) in numbers.iter_mut().zip(&self.codes[first..]) {
                *x = number(*code);
            }
            return;
        };
        scales.pieces(first, numbers, |scale, at, piece| {
            let scale = scales.numbers[scale];
            for (x, code) in piece.iter_mut().zip(&self.codes[at..]) {
                *x = number(*code) * scale;
            }
        });
    }

    fn kernel_form(&self) -> KernelForm {
        match &self.scales {
            None => scales::unscaled(&self.codes, &self.numbers),
            Some(scales) => scales.kernel_form(&self.codes, &self.numbers, None, 1.0),
        }
    }

    fn parts(&mut self) -> Vec<&mut Bytes> {
        let scales = self.scales.as_mut().map(|scales| &mut scales.numbers.0);
        [&mut self.codes].into_iter().chain(scales).collect()
    }
}

/// The JSON beside a matrix of ComfyUI.
#[derive(serde::Deserialize)]
struct ComfyQuant {
    format: String,
}

/// Checks that the JSON in the tensor `name` says no more than the matrix itself: fp8, by the scales beside it.
///
/// # Errors
/// Fails for other formats, such as those that turn the rows.
pub fn check_comfy_quant(parts: &dyn Parts, name: &str) -> Result<()> {
    let ComfyQuant { format } = part::json(parts, name)?;
    match format.as_str() {
        "float8_e4m3fn" | "float8_e5m2" => Ok(()),
        _ => bail!(
            "the tensor {name} says '{format}', a format that is not read; read are float8_e4m3fn and float8_e5m2"
        ),
    }
}

/// Reads the matrix `path`, such as `blocks.0.ff.weight`, with the scales in the tensor `scale`.
///
/// # Errors
/// Fails for parts that are missing or of another size.
pub fn read(
    parts: &dyn Parts,
    path: &str,
    scale: Option<&str>,
    shape: (usize, usize),
    device: &Device,
) -> Result<Stored<Float8>> {
    let dtype = parts.part(path)?.dtype();
    let Some(kind) = Float8Kind::of(dtype) else {
        bail!("the tensor {path} should be in fp8, but is {dtype:?}");
    };
    let codes = part::matrix(parts, path, dtype, shape)?;
    let scales = scale.map(|name| Scales::read(parts, name, shape)).transpose()?;
    Ok(Stored::new(Float8::new(kind, codes, scales), shape, device))
}

/// Stores a dense matrix in e4m3 without scales, as diffusers' layerwise casting does: the nearest code, +-448 at most.
///
/// # Errors
/// Fails for NaN and infinities.
pub fn quantize(dense: &Tensor, device: &Device) -> Result<Stored<Float8>> {
    let (numbers, shape) = numbers_to_store(dense)?;
    let format = Float8::new(Float8Kind::E4M3, e4m3(numbers)?.into(), None);
    Ok(Stored::new(format, shape, device))
}

/// Returns the nearest code of each number, by candle, whose codes are torch's.
pub(super) fn e4m3(numbers: Vec<f32>) -> Result<Vec<u8>> {
    let codes = |piece: &[f32]| {
        let cast = Tensor::new(piece, &Device::Cpu)?.to_dtype(DType::F8E4M3)?;
        let (storage, _) = cast.storage_and_layout();
        match &*storage {
            Storage::Cpu(CpuStorage::F8E4M3(codes)) => Ok(codes.iter().map(|code| code.to_bits()).collect::<Vec<u8>>()),
            _ => bail!("a cast to fp8 gave another type"),
        }
    };
    let pieces: Vec<Vec<u8>> = numbers.par_chunks(CHUNK).map(codes).collect::<Result<_>>()?;
    Ok(pieces.concat())
}
