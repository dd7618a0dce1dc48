//! Stored matrices as the files of their programs have them: names, types and shapes of the parts, and what is said of
//! them elsewhere. The formats' own modules read the same.
//!
//! | form | parts of `X.weight` | said elsewhere |
//! |---|---|---|
//! | fp8 | `X.weight` | |
//! | torchao int8 and float8 | `X._weight_qdata`, `X._weight_scale`, of int8 `X._weight_zero_point` | in the metadata of the file |
//! | bitsandbytes nf4 and fp4 | `X.weight`, and what [`bitsandbytes_4bit`] lists | |
//! | bitsandbytes int8 | `X.weight`, `X.SCB`, `X.weight_format` | |
//!
//! bitsandbytes and torchao also want `quantization_config` in config.json. Facts: `QuantState.as_dict` of bitsandbytes
//! 0.50, `flatten_tensor_state_dict` of torchao 0.18, and what diffusers 0.42 saves with each.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::bitsandbytes_4bit::{self, Absmax, BLOCK, FourBit, FourBitCode, NESTED_BLOCK};
use super::quantize::Quantization;
use super::torchao::part_name;
use super::{Stored, bitsandbytes_int8, float8, torchao};
use crate::ops::stored::StoredMatrix;

/// Name of bitsandbytes' int8, which is no form of [`Quantization`].
pub const BITSANDBYTES_INT8: &str = "bnb-int8";

/// Bytes of the longest number with a point in JSON: -1.2345678901234567e-100.
const LONGEST_NUMBER: usize = 24;

/// A form of matrices in safetensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileForm {
    /// e4m3 without scales.
    Fp8,
    /// torchao's float8, a scale a row.
    Fp8Scaled,
    /// torchao's int8, a scale a row.
    Int8,
    /// bitsandbytes' 4 bits, with double quantisation if true.
    FourBit(FourBitCode, bool),
    /// bitsandbytes' LLM.int8().
    BitsandbytesInt8,
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// Number format.
    pub dtype: Dtype,
    /// Shape; for text its longest.
    pub shape: Vec<usize>,
    /// True for text, whose length shows when it is written.
    pub text: bool,
}

/// A stored matrix, and its parts in the order of [`FileForm::parts`].
pub struct Written {
    /// The matrix, to be decoded.
    pub matrix: Arc<dyn StoredMatrix>,
    /// Bytes of the parts.
    pub parts: Vec<Vec<u8>>,
}

impl TensorSpec {
    /// Tensor of numbers.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            text: false,
        }
    }

    /// Returns the bytes of the tensor; of text at most so many.
    pub fn bytes(&self) -> u64 {
        let width = (self.dtype.bitsize() / 8) as u64;
        self.shape
            .iter()
            .fold(width, |all, side| all.saturating_mul(*side as u64))
    }
}

impl FileForm {
    /// Returns the form of safetensors that a form stands for; None for types of GGML.
    pub fn of(form: Quantization, double_quant: bool) -> Option<Self> {
        match form {
            Quantization::Fp8 => Some(Self::Fp8),
            Quantization::Fp8Scaled => Some(Self::Fp8Scaled),
            Quantization::Int8 => Some(Self::Int8),
            Quantization::FourBit(code) => Some(Self::FourBit(code, double_quant)),
            Quantization::Ggml(_) => None,
        }
    }

    /// Name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp8 => Quantization::Fp8.name(),
            Self::Fp8Scaled => Quantization::Fp8Scaled.name(),
            Self::Int8 => Quantization::Int8.name(),
            Self::FourBit(code, _) => code.name(),
            Self::BitsandbytesInt8 => BITSANDBYTES_INT8,
        }
    }

    /// Returns the form that is also made on the fly; None for bitsandbytes' int8.
    pub fn quantization(self) -> Option<Quantization> {
        match self {
            Self::BitsandbytesInt8 => None,
            _ => Quantization::from_name(self.name()),
        }
    }

    /// Returns the tensors of the matrix `path` in a file; `dtype` is the type that it was in.
    pub fn parts(self, path: &str, (out_features, features): (usize, usize), dtype: DType) -> Vec<TensorSpec> {
        let shape = [out_features, features];
        let count = out_features * features;
        let of = |part: &str| format!("{path}.{part}");
        match self {
            Self::Fp8 => vec![TensorSpec::new(path, Dtype::F8_E4M3, &shape)],
            Self::Fp8Scaled => vec![
                TensorSpec::new(part_name(path, "qdata"), Dtype::F8_E4M3, &shape),
                TensorSpec::new(part_name(path, "scale"), Dtype::F32, &[out_features, 1]),
            ],
            Self::Int8 => vec![
                TensorSpec::new(part_name(path, "qdata"), Dtype::I8, &shape),
                TensorSpec::new(part_name(path, "scale"), Dtype::F32, &[out_features, 1]),
                TensorSpec::new(part_name(path, "zero_point"), Dtype::I8, &[out_features, 1]),
            ],
            Self::FourBit(code, nested) => {
                let blocks = count.div_ceil(BLOCK);
                let map = bitsandbytes_4bit::dynamic_map().len();
                let absmax = if nested { Dtype::U8 } else { Dtype::F32 };
                let mut parts = vec![
                    TensorSpec::new(path, Dtype::U8, &[count.div_ceil(2), 1]),
                    TensorSpec::new(of("absmax"), absmax, &[blocks]),
                    TensorSpec::new(of("quant_map"), Dtype::F32, &[code.map().len()]),
                ];
                if nested {
                    let nested_blocks = blocks.div_ceil(NESTED_BLOCK);
                    parts.push(TensorSpec::new(of("nested_absmax"), Dtype::F32, &[nested_blocks]));
                    parts.push(TensorSpec::new(of("nested_quant_map"), Dtype::F32, &[map]));
                }
                let longest = "0".repeat(LONGEST_NUMBER);
                let state = quant_state(code, shape, dtype, nested.then_some(longest.as_str()));
                parts.push(TensorSpec {
                    text: true,
                    ..TensorSpec::new(
                        of(&format!("quant_state.bitsandbytes__{}", code.name())),
                        Dtype::U8,
                        &[state.len()],
                    )
                });
                parts
            }
            Self::BitsandbytesInt8 => {
                let layer = layer(path);
                vec![
                    TensorSpec::new(path, Dtype::I8, &shape),
                    TensorSpec::new(format!("{layer}.SCB"), Dtype::F32, &[out_features]),
                    TensorSpec::new(format!("{layer}.weight_format"), Dtype::U8, &[]),
                ]
            }
        }
    }

    /// Stores a dense matrix, which was in `dtype`.
    ///
    /// # Errors
    /// Fails for NaN and infinities, and for numbers that the form cannot hold.
    pub fn store(self, dense: &Tensor, dtype: DType) -> Result<Written> {
        let device = &Device::Cpu;
        Ok(match self {
            Self::Fp8 => {
                let stored = float8::quantize(dense, device)?;
                written(stored, |format| vec![format.codes.to_vec()])
            }
            Self::Fp8Scaled => {
                let stored = torchao::quantize_float8(dense, device)?;
                written(stored, |format| vec![format.codes.to_vec(), bytes(format.scales())])
            }
            Self::Int8 => {
                let stored = torchao::quantize_int8(dense, device)?;
                written(stored, |format| {
                    let zeros = vec![0; format.scales().len()];
                    vec![format.codes.to_vec(), bytes(format.scales()), zeros]
                })
            }
            Self::FourBit(code, nested) => {
                let shape = dense.dims2()?;
                let stored = bitsandbytes_4bit::quantize(dense, code, nested, device)?;
                written(stored, |format| four_bit_parts(format, code, shape.into(), dtype))
            }
            Self::BitsandbytesInt8 => {
                let stored = bitsandbytes_int8::quantize(dense, device)?;
                written(stored, |format| {
                    vec![format.codes.to_vec(), bytes(format.absmax()), vec![0]]
                })
            }
        })
    }

    /// Returns what the metadata of a file says of a matrix, if the form needs it.
    pub fn description(self, features: usize, dtype: DType) -> Option<String> {
        let dtype = torch_name(dtype);
        let int8 = json!({
            "_type": "Int8Tensor",
            "_data": {
                "act_quant_kwargs": null,
                "reduce_range": false,
                "block_size": [1, features],
                "dtype": {"_type": "torch.dtype", "_data": dtype},
            },
            "_tensor_data_names": ["zero_point", "qdata", "scale"],
        });
        let float8 = json!({
            "_type": "Float8Tensor",
            "_data": {
                "block_size": [1, features],
                "mm_config": null,
                "act_quant_kwargs": null,
                "kernel_preference": {"_type": "KernelPreference", "_data": "AUTO"},
                "dtype": {"_type": "torch.dtype", "_data": dtype},
            },
            "_tensor_data_names": ["qdata", "scale"],
        });
        match self {
            Self::Int8 => Some(int8.to_string()),
            Self::Fp8Scaled => Some(float8.to_string()),
            Self::Fp8 | Self::FourBit(..) | Self::BitsandbytesInt8 => None,
        }
    }

    /// Returns `quantization_config` of config.json, if the form needs it. `dense` are linear layers that are not stored,
    /// besides those that the class itself keeps; `dtype` is the type to compute in.
    pub fn quantization_config(self, dense: &[String], dtype: DType) -> Option<Value> {
        let dense = if dense.is_empty() { Value::Null } else { json!(dense) };
        let torchao = |kind: &str, setting: (&str, Value)| {
            json!({
                "modules_to_not_convert": dense,
                "quant_method": "torchao",
                "quant_type": {"default": {
                    "_data": {
                        "granularity": {"_data": {"dim": -1}, "_type": "PerRow", "_version": 1},
                        setting.0: setting.1,
                        "set_inductor_config": true,
                    },
                    "_type": kind,
                    "_version": 2,
                }},
            })
        };
        let e4m3 = json!({"_data": "float8_e4m3fn", "_type": "torch.dtype"});
        match self {
            Self::Fp8 => None,
            Self::Fp8Scaled => Some(torchao("Float8WeightOnlyConfig", ("weight_dtype", e4m3))),
            Self::Int8 => Some(torchao("Int8WeightOnlyConfig", ("group_size", Value::Null))),
            Self::FourBit(code, nested) => Some(bitsandbytes(code.name(), nested, true, &dense, dtype)),
            Self::BitsandbytesInt8 => Some(bitsandbytes("fp4", false, false, &dense, DType::F32)),
        }
    }
}

fn written<F: super::Decode + 'static>(stored: Stored<F>, parts: impl FnOnce(&F) -> Vec<Vec<u8>>) -> Written {
    let parts = parts(stored.format());
    Written {
        matrix: Arc::new(stored),
        parts,
    }
}

fn four_bit_parts(format: &FourBit, code: FourBitCode, shape: [usize; 2], dtype: DType) -> Vec<Vec<u8>> {
    let codes = format.codes.to_vec();
    match &format.absmax {
        Absmax::Plain(absmax) => {
            let state = quant_state(code, shape, dtype, None);
            vec![codes, bytes(absmax), bytes(&format.map), state.into_bytes()]
        }
        Absmax::Nested {
            codes: nested,
            map,
            absmax,
            offset,
            ..
        } => {
            let state = quant_state(code, shape, dtype, Some(&python_number(f64::from(*offset))));
            vec![
                codes,
                nested.to_vec(),
                bytes(&format.map),
                bytes(absmax),
                bytes(map),
                state.into_bytes(),
            ]
        }
    }
}

/// The JSON beside a matrix in 4 bits, spaced as Python does; with double quantisation also the offset.
fn quant_state(code: FourBitCode, [rows, columns]: [usize; 2], dtype: DType, offset: Option<&str>) -> String {
    let nested = offset.map_or(Cow::default(), |offset| {
        Cow::from(format!(
            r#", "nested_blocksize": {NESTED_BLOCK}, "nested_dtype": "float32", "nested_offset": {offset}"#
        ))
    });
    format!(
        r#"{{"quant_type": "{}", "blocksize": {BLOCK}, "dtype": "{}", "shape": [{rows}, {columns}]{nested}}}"#,
        code.name(),
        torch_name(dtype)
    )
}

fn bitsandbytes(code: &str, nested: bool, four: bool, dense: &Value, compute: DType) -> Value {
    json!({
        "_load_in_4bit": four,
        "_load_in_8bit": !four,
        "bnb_4bit_compute_dtype": torch_name(compute),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": code,
        "bnb_4bit_use_double_quant": nested,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": dense,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four,
        "load_in_8bit": !four,
        "quant_method": "bitsandbytes",
    })
}

/// Path of the layer of a weight.
fn layer(path: &str) -> &str {
    path.strip_suffix(".weight").unwrap_or(path)
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Name of a type in torch.
fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::F64 => "float64",
        _ => "float32",
    }
}

/// Returns the type of this name in torch; None for types that weights are not in.
///
/// # Errors
/// Fails for other names.
pub fn dtype_of(name: &str) -> Result<DType> {
    let known = [DType::F32, DType::BF16, DType::F16, DType::F64];
    match known.into_iter().find(|dtype| torch_name(*dtype) == name) {
        Some(dtype) => Ok(dtype),
        None => bail!("{name} is no type of weights"),
    }
}

/// Formats a number as Python does: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn python_number(x: f64) -> String {
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{x:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}
