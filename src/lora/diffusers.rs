//! The adapter files of diffusers and PEFT.
//!
//! Tensors are named `transformer.<layer>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank). Alpha stands in the
//! header's `lora_adapter_metadata`, a JSON text with keys such as `transformer.lora_alpha`, `transformer.alpha_pattern`
//! and `transformer.use_rslora`; without it alpha is the rank, as diffusers has it. What is written there is in
//! [`super::metadata`].

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

use super::adapters::{Adapter, AdapterFile};
use super::{Config, metadata};

/// Where the adapters of a transformer stand, among those of other models.
pub(super) const PREFIX: &str = "transformer.";

/// One layer's adapter on its way into a file.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    pub layer: &'a str,
    pub a: &'a Tensor, // (rank, in)
    pub b: &'a Tensor, // (out, rank)
}

/// An adapter file as `CogVideoXPipeline.save_lora_weights` writes it, in f32. The same adapters make the same bytes.
///
/// The header is put together here, since the safetensors crate takes its metadata as a hash map, whose order differs from
/// run to run.
///
/// # Errors
/// A number that is not finite, by tensor.
pub fn to_bytes(config: &Config, adapters: &[Named]) -> anyhow::Result<Vec<u8>> {
    let layers: Vec<&str> = adapters.iter().map(|adapter| adapter.layer).collect();
    let about = json!({"format": "pt", "lora_adapter_metadata": metadata::text(config, &layers)});
    let mut header = Map::from_iter([("__metadata__".to_string(), about)]);
    let mut tensors: Vec<(String, &Tensor)> = Vec::new();
    for Named { layer, a, b } in adapters {
        tensors.push((format!("{PREFIX}{layer}.lora_A.weight"), a));
        tensors.push((format!("{PREFIX}{layer}.lora_B.weight"), b));
    }
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let start = data.len();
        let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
            bail!("{name} holds {bad}; an adapter that is not finite is not written");
        }
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": tensor.dims(), "data_offsets": [start, data.len()]});
        header.insert(name, entry);
    }
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' '); // the tensors start aligned
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.extend(data);
    Ok(bytes)
}

/// What PEFT says of the adapters.
#[derive(Debug, Default)]
struct Settings {
    lora_alpha: Option<f64>,
    alpha_pattern: BTreeMap<String, f64>,
    use_rslora: bool,
}

/// Reads an adapter file to be applied with `strength`.
///
/// # Errors
/// As [`from_bytes`], with the file's name.
pub fn read(path: &Path, strength: f64) -> anyhow::Result<AdapterFile> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(AdapterFile {
        path: path.into(),
        strength,
        layers: from_bytes(&bytes).with_context(|| path.display().to_string())?,
    })
}

/// The adapters of a file, by layer.
///
/// # Errors
/// No safetensors, tensors that are no adapters or come without their other half, by tensor.
pub fn from_bytes(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Adapter>> {
    let settings = Settings::read(bytes)?;
    let tensors =
        candle_core::safetensors::load_buffer(bytes, &Device::Cpu).context("not a readable safetensors file")?;
    let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    for (name, tensor) in tensors {
        let inner = name.strip_prefix(PREFIX).unwrap_or(&name);
        let ends = [".lora_A.weight", ".lora_B.weight"];
        let half = ends
            .iter()
            .enumerate()
            .find_map(|(i, end)| Some((i, inner.strip_suffix(end)?)));
        let Some((half, layer)) = half else {
            bail!("the tensor {name} is no adapter in the diffusers format ({PREFIX}<layer>.lora_A.weight)");
        };
        ensure!(
            tensor.rank() == 2,
            "the tensor {name} has shape {:?}, not two sides",
            tensor.dims()
        );
        halves.entry(layer.to_string()).or_default()[half] = Some(tensor);
    }
    ensure!(!halves.is_empty(), "there are no adapters in this file");
    let mut layers = BTreeMap::new();
    for (layer, halves) in halves {
        let [Some(a), Some(b)] = halves else {
            bail!("{layer} has only one of lora_A and lora_B");
        };
        let rank = a.dim(0)?;
        ensure!(
            rank > 0 && b.dim(1)? == rank,
            "{layer}: lora_A has rank {rank}, lora_B {}",
            b.dim(1)?
        );
        let (alpha, use_rslora) = (settings.alpha(&layer, rank), settings.use_rslora);
        layers.insert(
            layer,
            Adapter {
                a,
                b,
                alpha,
                use_rslora,
            },
        );
    }
    Ok(layers)
}

impl Settings {
    /// From the header of a safetensors file.
    fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        let (_, header) = safetensors::SafeTensors::read_metadata(bytes).context("not a readable safetensors file")?;
        let Some(text) = header
            .metadata()
            .as_ref()
            .and_then(|map| map.get("lora_adapter_metadata"))
        else {
            return Ok(Self::default());
        };
        let json: Value = serde_json::from_str(text).context("lora_adapter_metadata is not JSON")?;
        let get = |key: &str| json.get(format!("{PREFIX}{key}"));
        let pattern = get("alpha_pattern").and_then(Value::as_object);
        Ok(Self {
            lora_alpha: get("lora_alpha").and_then(Value::as_f64),
            alpha_pattern: pattern
                .into_iter()
                .flatten()
                .filter_map(|(layer, alpha)| Some((layer.clone(), alpha.as_f64()?)))
                .collect(),
            use_rslora: get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The adapter's alpha. Patterns name a layer by its path or the end of it.
    fn alpha(&self, layer: &str, rank: usize) -> f64 {
        let ends = |pattern: &str| layer == pattern || layer.ends_with(&format!(".{pattern}"));
        let own = self.alpha_pattern.iter().find(|(pattern, _)| ends(pattern));
        own.map(|(_, alpha)| *alpha).or(self.lora_alpha).unwrap_or(rank as f64)
    }
}
