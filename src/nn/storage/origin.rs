//! Facts that a file tells of a stored matrix besides its numbers: shape, the type that it was in, and the form that it
//! would be written in again.

use std::collections::HashMap;

use candle_core::{DType, Result, bail};
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde_json::Value;

use super::bitsandbytes_4bit::BLOCK;
use super::detect::{Form, StoredForm};
use super::layout::{FileForm, dtype_of};
use super::part::{self, Parts};
use super::torchao::part_name;

/// Origin of a stored matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Rows and columns.
    pub shape: (usize, usize),
    /// Type before it was stored, if the file says.
    pub dtype: Option<DType>,
    /// Form that it can be stored in again, or why not.
    pub form: std::result::Result<FileForm, String>,
}

/// The part of bitsandbytes' JSON that tells the origin.
#[derive(Deserialize)]
struct QuantState {
    blocksize: usize,
    shape: (usize, usize),
    dtype: Option<String>,
    nested_blocksize: Option<usize>,
}

impl Origin {
    /// Reads it for the matrix `path`; `metadata` is that of the files.
    ///
    /// # Errors
    /// Fails for parts that are missing or no matrix.
    pub fn of(stored: &StoredForm, parts: &dyn Parts, metadata: &HashMap<String, String>, path: &str) -> Result<Self> {
        let matrix = |name: &str| match parts.part(name)?.shape() {
            &[rows, columns] => Ok((rows, columns)),
            other => bail!("the tensor {name} {other:?} should be a matrix"),
        };
        Ok(match &stored.form {
            Form::FourBit(code) => {
                let state = format!("{path}.quant_state.bitsandbytes__{}", code.name());
                let state: QuantState = part::json(parts, &state)?;
                let codes = parts.part(path)?.data().len();
                let count = part::elements(path, state.shape)?;
                if count == 0 || count.div_ceil(2) != codes {
                    bail!("{path} {:?} is not {codes} bytes of two codes each", state.shape);
                }
                let dtype = state.dtype.as_deref().map(dtype_of).transpose()?;
                let form = match state.blocksize {
                    BLOCK => Ok(FileForm::FourBit(*code, state.nested_blocksize.is_some())),
                    other => Err(format!("is in blocks of {other}, and written are blocks of {BLOCK}")),
                };
                Self {
                    shape: state.shape,
                    dtype,
                    form,
                }
            }
            Form::Int8Rows => Self {
                shape: matrix(path)?,
                dtype: None,
                form: Ok(FileForm::BitsandbytesInt8),
            },
            Form::Float8 { scale, .. } => Self {
                shape: matrix(path)?,
                dtype: None,
                form: match (scale, parts.part(path)?.dtype()) {
                    (None, Dtype::F8_E4M3) => Ok(FileForm::Fp8),
                    (None, _) => Err("is in e5m2, and written is e4m3".into()),
                    (Some(_), _) => Err("is in ComfyUI's scaled fp8, which is not written".into()),
                },
            },
            Form::TorchaoInt8 | Form::TorchaoFloat8 => {
                let shape = matrix(&part_name(path, "qdata"))?;
                let scales = parts.part(&part_name(path, "scale"))?;
                let again = match stored.form {
                    Form::TorchaoInt8 => FileForm::Int8,
                    _ => FileForm::Fp8Scaled,
                };
                Self {
                    shape,
                    dtype: torchao_dtype(metadata.get(path).map_or("", String::as_str))?,
                    form: match scales.shape() == [shape.0, 1] {
                        true => Ok(again),
                        false => Err("has other scales than one a row, which are not written".into()),
                    },
                }
            }
        })
    }
}

fn torchao_dtype(description: &str) -> Result<Option<DType>> {
    let described: Value = serde_json::from_str(description).unwrap_or_default();
    let name = described.pointer("/_data/dtype/_data").and_then(Value::as_str);
    name.map(dtype_of).transpose()
}
