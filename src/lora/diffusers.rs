//! The adapter files of diffusers and PEFT.
//!
//! Tensors are named `transformer.<layer>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank). Alpha stands in the
//! header's `lora_adapter_metadata`, a JSON text with keys such as `transformer.lora_alpha`, `transformer.alpha_pattern`
//! and `transformer.use_rslora`; without it alpha is the rank, as diffusers has it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use candle_core::{Device, Tensor};
use serde_json::Value;

use super::adapters::{Adapter, AdapterFile};

const PREFIX: &str = "transformer.";

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
/// No safetensors, tensors that are no adapters or come without their other half, by file and tensor.
pub fn read(path: &Path, strength: f64) -> anyhow::Result<AdapterFile> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| shown.to_string())?;
    let settings = Settings::read(&bytes).with_context(|| shown.to_string())?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .with_context(|| format!("{shown}: not a readable safetensors file"))?;
    let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    for (name, tensor) in tensors {
        let inner = name.strip_prefix(PREFIX).unwrap_or(&name);
        let ends = [".lora_A.weight", ".lora_B.weight"];
        let half = ends
            .iter()
            .enumerate()
            .find_map(|(i, end)| Some((i, inner.strip_suffix(end)?)));
        let Some((half, layer)) = half else {
            bail!("{shown}: the tensor {name} is no adapter in the diffusers format ({PREFIX}<layer>.lora_A.weight)");
        };
        ensure!(
            tensor.rank() == 2,
            "{shown}: the tensor {name} has shape {:?}, not two sides",
            tensor.dims()
        );
        halves.entry(layer.to_string()).or_default()[half] = Some(tensor);
    }
    ensure!(!halves.is_empty(), "{shown}: there are no adapters in this file");
    let mut layers = BTreeMap::new();
    for (layer, halves) in halves {
        let [Some(a), Some(b)] = halves else {
            bail!("{shown}: {layer} has only one of lora_A and lora_B");
        };
        let rank = a.dim(0)?;
        ensure!(
            rank > 0 && b.dim(1)? == rank,
            "{shown}: {layer}: lora_A has rank {rank}, lora_B {}",
            b.dim(1)?
        );
        let scale = settings.scale(&layer, rank);
        layers.insert(layer, Adapter { a, b, scale });
    }
    Ok(AdapterFile {
        path: path.into(),
        strength,
        layers,
    })
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

    /// The adapter's factor. Patterns name a layer by its path or the end of it.
    fn scale(&self, layer: &str, rank: usize) -> f64 {
        let ends = |pattern: &str| layer == pattern || layer.ends_with(&format!(".{pattern}"));
        let own = self
            .alpha_pattern
            .iter()
            .find(|(pattern, _)| ends(pattern))
            .map(|(_, alpha)| *alpha);
        let alpha = own.or(self.lora_alpha).unwrap_or(rank as f64);
        if self.use_rslora {
            alpha / (rank as f64).sqrt()
        } else {
            alpha / rank as f64
        }
    }
}
