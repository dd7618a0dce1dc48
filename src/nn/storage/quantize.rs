//! Forms that a dense matrix can be stored in while it loads.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bitsandbytes_4bit::{self, FourBitCode};
use super::ggml::{self, GgmlType};
use super::{float8, torchao};
use crate::ops::stored::StoredMatrix;

/// Name of no form at all.
const NONE: &str = "none";

/// Name of the form that the plan chooses.
const AUTO: &str = "auto";

/// Forms by their names in run files, after [`NONE`].
const NAMES: [(&str, Quantization); 15] = [
    ("fp8", Quantization::Fp8),
    ("fp8-scaled", Quantization::Fp8Scaled),
    ("int8", Quantization::Int8),
    ("nf4", Quantization::FourBit(FourBitCode::Nf4)),
    ("fp4", Quantization::FourBit(FourBitCode::Fp4)),
    ("q4_0", Quantization::Ggml(GgmlType::Q4_0)),
    ("q4_1", Quantization::Ggml(GgmlType::Q4_1)),
    ("q5_0", Quantization::Ggml(GgmlType::Q5_0)),
    ("q5_1", Quantization::Ggml(GgmlType::Q5_1)),
    ("q8_0", Quantization::Ggml(GgmlType::Q8_0)),
    ("q2_k", Quantization::Ggml(GgmlType::Q2K)),
    ("q3_k", Quantization::Ggml(GgmlType::Q3K)),
    ("q4_k", Quantization::Ggml(GgmlType::Q4K)),
    ("q5_k", Quantization::Ggml(GgmlType::Q5K)),
    ("q6_k", Quantization::Ggml(GgmlType::Q6K)),
];

/// Returns true for a path that contains one of `dense`, or begins with what is behind a `^` there.
pub fn stays_dense(dense: &[&str], path: &str) -> bool {
    dense.iter().any(|part| match part.strip_prefix('^') {
        Some(beginning) => path.starts_with(beginning),
        None => path.contains(part),
    })
}

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
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, form)| *form)
    }

    /// Returns every form.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.into_iter().map(|(_, form)| form)
    }

    /// Name, as [`from_name`](Self::from_name) takes it.
    pub fn name(self) -> &'static str {
        let known = NAMES.iter().find(|(_, form)| *form == self);
        known.map_or(NONE, |(name, _)| name)
    }

    /// Returns the bytes of a stored matrix (out, in).
    pub fn bytes(self, (out_features, features): (usize, usize)) -> u64 {
        const SCALE: u64 = size_of::<f32>() as u64;
        let count = out_features as u64 * features as u64;
        let rows = out_features as u64 * SCALE;
        let codes = 256 * SCALE;
        match self {
            Self::Fp8 => count + codes,
            Self::Fp8Scaled => count + codes + rows,
            Self::Int8 => count + rows,
            Self::FourBit(_) => bitsandbytes_4bit::nested_bytes(count),
            Self::Ggml(kind) => {
                let blocks = kind.fallback(features).bytes(count as usize);
                blocks.map_or(u64::MAX, |bytes| bytes as u64)
            }
        }
    }

    /// Stores a dense matrix. Where its rows are no whole blocks of a type of GGML, it gets [`GgmlType::fallback`]'s.
    ///
    /// # Errors
    /// Fails for NaN and infinities.
    pub fn store(self, dense: &Tensor, device: &Device) -> Result<Arc<dyn StoredMatrix>> {
        match self {
            Self::Fp8 => float8::quantize(dense, device)?.placed(),
            Self::Fp8Scaled => torchao::quantize_float8(dense, device)?.placed(),
            Self::Int8 => torchao::quantize_int8(dense, device)?.placed(),
            Self::FourBit(code) => bitsandbytes_4bit::quantize(dense, code, true, device)?.placed(),
            Self::Ggml(kind) => ggml::quantize(dense, kind.fallback(dense.dims2()?.1), device)?.placed(),
        }
    }
}

impl Serialize for Quantization {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Form of a part's matrices as a key of a run file: `auto`, `none` or a form's name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QuantizationSetting {
    /// Chosen by the plan: none, where the run fits so. No form until then.
    Auto,
    /// As the checkpoint has them.
    #[default]
    None,
    /// This form.
    Form(Quantization),
}

impl QuantizationSetting {
    /// Returns the form; None if matrices stay as they are.
    pub fn form(self) -> Option<Quantization> {
        match self {
            Self::Form(form) => Some(form),
            Self::Auto | Self::None => None,
        }
    }

    /// Name, as a run file has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => AUTO,
            Self::None => NONE,
            Self::Form(form) => form.name(),
        }
    }
}

impl From<Option<Quantization>> for QuantizationSetting {
    fn from(form: Option<Quantization>) -> Self {
        form.map_or(Self::None, Self::Form)
    }
}

impl Serialize for QuantizationSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for QuantizationSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match name == AUTO {
            true => Ok(Self::Auto),
            false => parse(&name).map(Self::from).map_err(serde::de::Error::custom),
        }
    }
}

impl JsonSchema for QuantizationSetting {
    fn schema_name() -> Cow<'static, str> {
        "Quantization".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = std::iter::once(AUTO).chain(names()).collect();
        json_schema!({"type": "string", "enum": names})
    }
}

/// Returns `none` and the names of all forms.
pub fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once(NONE).chain(NAMES.iter().map(|(name, _)| *name))
}

/// Returns the form of this name; None for `none`.
///
/// # Errors
/// Fails for other names, with the known ones.
pub fn parse(name: &str) -> std::result::Result<Option<Quantization>, String> {
    match Quantization::from_name(name) {
        None if name != NONE => {
            let known = names().collect::<Vec<_>>().join(", ");
            Err(format!("'{name}' is no form of storage; there are {known}"))
        }
        form => Ok(form),
    }
}
