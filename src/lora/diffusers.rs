//! The adapter files of diffusers: `transformer.<layer>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank).
//!
//! A bias of lora_B, `.lora_B.bias` (out), is scaled as B A is. diffusers has no place for other differences of parameters.
//!
//! Alpha stands in the header's `lora_adapter_metadata`; without it alpha is the rank, as diffusers has it. What is written
//! there is in [`super::metadata`], what is read in [`super::settings`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use candle_core::{DType, Tensor};

use super::adapters::{Adapter, AdapterFile, Deltas};
use super::bytes::{self, About, Tensors};
use super::{Config, file, metadata, settings};

/// Where the adapters of a transformer stand, among those of other models.
pub const PREFIX: &str = "transformer.";

/// One layer's adapter on its way into a file.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    pub layer: &'a str,
    pub a: &'a Tensor, // (rank, in)
    pub b: &'a Tensor, // (out, rank)
}

/// The adapters of a run, in f32, as `CogVideoXPipeline.save_lora_weights` writes them.
///
/// # Errors
/// A number that is not finite, by tensor.
pub fn to_bytes(config: &Config, adapters: &[Named]) -> anyhow::Result<Vec<u8>> {
    let layers: Vec<&str> = adapters.iter().map(|adapter| adapter.layer).collect();
    let about = About::from([(settings::KEY.to_string(), metadata::text(config, &layers))]);
    let mut tensors = Tensors::new();
    for Named { layer, a, b } in adapters {
        tensors.push((
            format!("{PREFIX}{layer}.lora_A.weight"),
            Cow::Owned(a.to_dtype(DType::F32)?),
        ));
        tensors.push((
            format!("{PREFIX}{layer}.lora_B.weight"),
            Cow::Owned(b.to_dtype(DType::F32)?),
        ));
    }
    bytes::safetensors(&about, tensors)
}

/// Adapters from anywhere; `about` is kept beside their settings. Differences that are zero are left out.
///
/// # Errors
/// As [`to_bytes`]; differences of parameters that are no bias of a layer with an adapter.
pub fn write(layers: &BTreeMap<String, Adapter>, deltas: &Deltas, about: &About) -> anyhow::Result<Vec<u8>> {
    let biases = biases(layers, deltas)?;
    let mut about = about.clone();
    about.insert(settings::KEY.into(), metadata::text_of(layers, !biases.is_empty()));
    let mut tensors = Tensors::new();
    for (layer, Adapter { a, b, .. }) in layers {
        tensors.push((format!("{PREFIX}{layer}.lora_A.weight"), Cow::Borrowed(a)));
        tensors.push((format!("{PREFIX}{layer}.lora_B.weight"), Cow::Borrowed(b)));
    }
    for (layer, bias) in biases {
        tensors.push((format!("{PREFIX}{layer}.lora_B.bias"), Cow::Owned(bias)));
    }
    bytes::safetensors(&about, tensors)
}

/// The differences as biases of lora_B: PEFT has one on every layer, or on none.
fn biases<'a>(layers: &'a BTreeMap<String, Adapter>, deltas: &Deltas) -> anyhow::Result<BTreeMap<&'a String, Tensor>> {
    let mut told = BTreeMap::new();
    let mut homeless = Vec::new();
    for (name, delta) in deltas {
        let layer = name.strip_suffix(".bias").and_then(|layer| layers.get_key_value(layer));
        match layer {
            _ if is_zero(delta)? => {}
            Some((layer, adapter)) if adapter.scale() != 0.0 => {
                let bias = (delta.to_dtype(DType::F64)? / adapter.scale())?;
                let exact = adapter.scale() == 1.0;
                told.insert(layer, bias.to_dtype(if exact { delta.dtype() } else { DType::F32 })?);
            }
            _ => homeless.push(name),
        }
    }
    if let Some(first) = homeless.first() {
        bail!(
            "{first} is added to as a whole, and {} parameters more; diffusers has no place for that: convert to comfyui, or \
             fold the file into the model with vtrain lora merge",
            homeless.len() - 1
        );
    }
    if !told.is_empty() {
        for (layer, adapter) in layers {
            if !told.contains_key(layer) {
                let zeros = Tensor::zeros(adapter.b.dim(0)?, adapter.b.dtype(), adapter.b.device())?;
                told.insert(layer, zeros);
            }
        }
    }
    Ok(told)
}

fn is_zero(tensor: &Tensor) -> candle_core::Result<bool> {
    let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(values.iter().all(|value| *value == 0.0))
}

/// Reads an adapter file of diffusers or PEFT to be applied with `strength`; other formats need to know families.
///
/// # Errors
/// As [`from_bytes`], with the file's name.
pub fn read(path: &Path, strength: f64) -> anyhow::Result<AdapterFile> {
    file::read(path, &[])?.apply(path, strength)
}

/// The adapters of a file of diffusers or PEFT, by layer.
///
/// # Errors
/// No safetensors, tensors that are no adapters or come without their other half, by tensor.
pub fn from_bytes(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Adapter>> {
    let read = file::from_bytes(bytes, None, &[])?;
    read.check().context("this is no whole adapter file")?;
    Ok(read.layers)
}
