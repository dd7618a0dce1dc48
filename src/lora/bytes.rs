//! Serialises adapters as a safetensors file.
//!
//! The header is built here, because the safetensors crate takes its metadata as a hash map, whose order differs from
//! run to run: here the same adapters give the same bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use candle_core::{DType, Tensor};
use safetensors::View;
use serde_json::{Map, Value, json};

use crate::finite;

/// Metadata of a header.
pub type Metadata = BTreeMap<String, String>;

/// Named tensors of a file.
pub type Tensors<'a> = Vec<(String, Cow<'a, Tensor>)>;

/// Returns the bytes of a safetensors file; tensors keep their number formats.
///
/// # Errors
/// Fails for a non-finite number, named by its tensor, and for a type that is not floating-point.
pub fn safetensors(about: &Metadata, mut tensors: Tensors) -> anyhow::Result<Vec<u8>> {
    let mut notes = Map::from_iter([("format".to_string(), json!("pt"))]);
    notes.extend(about.iter().map(|(key, text)| (key.clone(), json!(text))));
    let mut header = Map::from_iter([("__metadata__".to_string(), Value::Object(notes))]);
    // Wide numbers first, so that every tensor starts aligned.
    let width = |tensor: &Tensor| std::cmp::Reverse(tensor.dtype().size_in_bytes());
    tensors.sort_by(|(a, first), (b, second)| width(first).cmp(&width(second)).then_with(|| a.cmp(b)));
    let mut data = Vec::new();
    for (name, tensor) in &tensors {
        let dtype = match tensor.dtype() {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            other => bail!("{name}: adapters in {other:?} cannot be written"),
        };
        if let Some(first) = finite::first(tensor)? {
            bail!("{name} holds {first}; a non-finite adapter is not written");
        }
        let start = data.len();
        let tensor = tensor.to_device(&candle_core::Device::Cpu)?;
        data.extend_from_slice(&tensor.data());
        let entry = json!({"dtype": dtype, "shape": tensor.dims(), "data_offsets": [start, data.len()]});
        ensure!(header.insert(name.clone(), entry).is_none(), "{name}: appears twice");
    }
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.extend(data);
    Ok(bytes)
}
