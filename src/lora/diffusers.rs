//! The adapter files of diffusers: `transformer.<layer>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank).
//!
//! Alpha stands in the header's `lora_adapter_metadata`; without it alpha is the rank, as diffusers has it. What is written
//! there is in [`super::metadata`], what is read in [`super::settings`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Tensor};

use super::adapters::{Adapter, AdapterFile};
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

/// Adapters from anywhere; `about` is kept beside their settings.
///
/// # Errors
/// As [`to_bytes`].
pub fn write(adapters: &BTreeMap<String, Adapter>, about: &About) -> anyhow::Result<Vec<u8>> {
    let mut about = about.clone();
    about.insert(settings::KEY.into(), metadata::text_of(adapters));
    let mut tensors = Tensors::new();
    for (layer, Adapter { a, b, .. }) in adapters {
        tensors.push((format!("{PREFIX}{layer}.lora_A.weight"), Cow::Borrowed(a)));
        tensors.push((format!("{PREFIX}{layer}.lora_B.weight"), Cow::Borrowed(b)));
    }
    bytes::safetensors(&about, tensors)
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
