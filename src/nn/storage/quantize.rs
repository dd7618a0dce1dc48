//! Forms that a dense matrix can be stored in while it loads.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::bitsandbytes_4bit::{self, FourBitCode};
use super::ggml::{self, GgmlType};
use super::{float8, torchao};
use crate::ops::stored::StoredMatrix;

/// A form to store dense matrices in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// e4m3 without scales, as diffusers' layerwise casting has it: small weights lose bits.
    Fp8,
    /// e4m3 with a scale a row, torchao's float8.
    Fp8Scaled,
    /// 8 bits with a scale a row, torchao's int8.
    Int8,
    /// 4 bits of bitsandbytes with double quantisation.
    FourBit(FourBitCode),
    /// Blocks of GGUF files.
    Ggml(GgmlType),
}

impl Quantization {
    /// Returns the form of this name: `fp8`, `fp8-scaled`, `int8`, `nf4`, `fp4`, or a type of GGML in small letters, such
    /// as `q4_k`; None for others.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|form| form.name() == name)
    }

    /// Returns every form.
    pub fn all() -> impl Iterator<Item = Self> {
        let few = [Self::Fp8, Self::Fp8Scaled, Self::Int8];
        let four = [FourBitCode::Nf4, FourBitCode::Fp4].map(Self::FourBit);
        let blocks = GgmlType::ALL.into_iter().filter(|kind| kind.block() > 1);
        few.into_iter().chain(four).chain(blocks.map(Self::Ggml))
    }

    /// Name, as [`from_name`](Self::from_name) takes it.
    pub fn name(self) -> String {
        match self {
            Self::Fp8 => "fp8".into(),
            Self::Fp8Scaled => "fp8-scaled".into(),
            Self::Int8 => "int8".into(),
            Self::FourBit(code) => code.name().into(),
            Self::Ggml(kind) => kind.name().to_lowercase(),
        }
    }

    /// Stores a dense matrix. Where its rows are no whole blocks of a type of GGML, it gets [`GgmlType::fallback`]'s.
    ///
    /// # Errors
    /// Fails for NaN and infinities.
    pub fn store(self, dense: &Tensor, device: &Device) -> Result<Arc<dyn StoredMatrix>> {
        Ok(match self {
            Self::Fp8 => Arc::new(float8::quantize(dense, device)?),
            Self::Fp8Scaled => Arc::new(torchao::quantize_float8(dense, device)?),
            Self::Int8 => Arc::new(torchao::quantize_int8(dense, device)?),
            Self::FourBit(code) => Arc::new(bitsandbytes_4bit::quantize(dense, code, true, device)?),
            Self::Ggml(kind) => Arc::new(ggml::quantize(dense, kind.fallback(dense.dims2()?.1), device)?),
        })
    }
}
