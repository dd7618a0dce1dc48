//! Adapter files of diffusers: `transformer.<layer>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank).
//!
//! A bias of lora_B, `.lora_B.bias` (out), is scaled like B A. diffusers does not support other differences of
//! parameters.
//!
//! Alpha is in the header's `lora_adapter_metadata`; without it alpha is the rank, as in diffusers. See `metadata` for
//! writing, and `settings` for reading.

use std::borrow::Cow;
use std::collections::BTreeMap;

use anyhow::bail;
use candle_core::{DType, Tensor};

use super::adapters::{Adapter, Deltas};
use super::bytes::{self, Metadata, Tensors};
use super::format::DIFFUSERS_PREFIX as PREFIX;
use super::{Config, metadata, settings};

/// Adapter of one layer, to be written.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Path of the layer in diffusers.
    pub layer: &'a str,
    /// Shape of an input: (in), or (channels, sides of the kernel...) of a convolution, whose adapter is written as two
    /// convolutions, the second of a single point.
    pub input: &'a [usize],
    /// Matrix A (rank, in).
    pub a: &'a Tensor,
    /// Matrix B (out, rank).
    pub b: &'a Tensor,
}

impl Named<'_> {
    /// Returns A and B in f32, in the shapes of files.
    pub fn stored(&self) -> candle_core::Result<(Tensor, Tensor)> {
        let (rank, out_features) = (self.a.dim(0)?, self.b.dim(0)?);
        let point = vec![1; self.input.len().saturating_sub(1)];
        let (a, b) = (self.a.to_dtype(DType::F32)?, self.b.to_dtype(DType::F32)?);
        Ok((
            a.reshape([&[rank], self.input].concat())?,
            b.reshape([&[out_features, rank], &point[..]].concat())?,
        ))
    }
}

/// Key of the header that says in which form the base was that the adapters learned over.
pub const BASE_FORM: &str = "vtrain.base_form";

/// Writes the adapters of a run, in f32, like `CogVideoXPipeline.save_lora_weights`; `base_form` is the form in few bits of
/// the base's matrices.
///
/// # Errors
/// Fails for a non-finite number, named by its tensor.
pub fn to_bytes(config: &Config, adapters: &[Named], base_form: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let layers: Vec<&str> = adapters.iter().map(|adapter| adapter.layer).collect();
    let mut about = Metadata::from([(settings::KEY.to_string(), metadata::text(config, &layers))]);
    about.extend(base_form.map(|form| (BASE_FORM.to_string(), form.to_string())));
    let mut tensors = Tensors::new();
    for named in adapters {
        let ((a, b), layer) = (named.stored()?, named.layer);
        tensors.push((format!("{PREFIX}{layer}.lora_A.weight"), Cow::Owned(a)));
        tensors.push((format!("{PREFIX}{layer}.lora_B.weight"), Cow::Owned(b)));
    }
    bytes::safetensors(&about, tensors)
}

/// Writes any adapters; `about` is kept next to their settings. Differences that are zero are omitted.
///
/// # Errors
/// Same as [`to_bytes`]; also for differences of parameters other than the bias of a layer with an adapter.
pub fn write(layers: &BTreeMap<String, Adapter>, deltas: &Deltas, about: &Metadata) -> anyhow::Result<Vec<u8>> {
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

/// Returns the differences as biases of lora_B: in PEFT every layer has one, or none.
fn biases<'a>(layers: &'a BTreeMap<String, Adapter>, deltas: &Deltas) -> anyhow::Result<BTreeMap<&'a String, Tensor>> {
    let mut told = BTreeMap::new();
    let mut unmatched = Vec::new();
    for (name, delta) in deltas {
        let layer = name.strip_suffix(".bias").and_then(|layer| layers.get_key_value(layer));
        match layer {
            _ if is_zero(delta)? => {}
            Some((layer, adapter)) if adapter.scale() != 0.0 => {
                let bias = (delta.to_dtype(DType::F64)? / adapter.scale())?;
                let exact = adapter.scale() == 1.0;
                told.insert(layer, bias.to_dtype(if exact { delta.dtype() } else { DType::F32 })?);
            }
            _ => unmatched.push(name),
        }
    }
    if let Some(first) = unmatched.first() {
        bail!(
            "{first} is added to as a whole, and {} parameters more; diffusers has no place for that: convert to comfyui, or \
             fold the file into the model with vtrain lora merge",
            unmatched.len() - 1
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
