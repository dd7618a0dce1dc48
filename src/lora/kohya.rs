//! Adapter files of kohya's trainers and musubi-tuner: `lora_unet_<original name>.lora_down.weight` (rank, in),
//! `.lora_up.weight` (out, rank) and `.alpha`, with `.diff` and `.diff_b` as in ComfyUI's, and `_` in place of every
//! `.` of the name. The scale is alpha / rank.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::adapters::{Adapter, Deltas};
use super::bytes::{self, Metadata, Tensors};
use super::comfyui;
use super::format::KOHYA_PREFIX as PREFIX;
use super::names::{self, Names};

/// Writes adapters of a family and differences of its parameters, under its original names.
///
/// # Errors
/// Fails for a layer that the family does not have, and for a non-finite number.
pub fn write(
    adapters: &BTreeMap<String, Adapter>,
    deltas: &Deltas,
    names: &Names,
    about: &Metadata,
) -> anyhow::Result<Vec<u8>> {
    let about = comfyui::with_settings(adapters, about);
    let mut tensors = Tensors::new();
    for (layer, adapter) in adapters {
        let name = format!("{PREFIX}{}", names::flatten(&comfyui::original(names, layer)?));
        tensors.push((format!("{name}.lora_down.weight"), Cow::Borrowed(&adapter.a)));
        tensors.push((format!("{name}.lora_up.weight"), Cow::Borrowed(&adapter.b)));
        tensors.push((format!("{name}.alpha"), Cow::Owned(comfyui::alpha(adapter)?)));
    }
    for (parameter, delta) in deltas {
        let (name, end) = comfyui::difference(names, parameter)?;
        let name = format!("{PREFIX}{}", names::flatten(&name));
        tensors.push((format!("{name}.{end}"), Cow::Borrowed(delta)));
    }
    bytes::safetensors(&about, tensors)
}
