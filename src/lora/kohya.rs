//! Adapter files of kohya's trainers and musubi-tuner: `lora_unet_<original name>.lora_down.weight` (rank, in),
//! `.lora_up.weight` (out, rank) and `.alpha`, with `.diff` and `.diff_b` as in ComfyUI's, and `_` in place of every
//! `.` of the name. The scale is alpha / rank. Adapters of layers that are fused in the original checkpoint are joined.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::adapters::{Adapter, Deltas};
use super::bytes::{self, Metadata, Tensors};
use super::format::KOHYA_PREFIX as PREFIX;
use super::names::{self, Names};
use super::{comfyui, fused};

/// Writes adapters of a family and differences of its parameters, under its original names.
///
/// # Errors
/// Fails for a layer that the family does not have, and for a non-finite number.
pub fn write(
    adapters: &BTreeMap<String, Adapter>,
    deltas: &Deltas,
    names: &'static Names,
    about: &Metadata,
) -> anyhow::Result<Vec<u8>> {
    let about = comfyui::with_settings(adapters, about);
    let joined = fused::join(adapters, deltas, names)?;
    let mut tensors = Tensors::new();
    for (name, adapter) in &joined.layers {
        let name = format!("{PREFIX}{}", names::flatten(name));
        tensors.push((format!("{name}.lora_down.weight"), Cow::Borrowed(&adapter.a)));
        tensors.push((format!("{name}.lora_up.weight"), Cow::Borrowed(&adapter.b)));
        tensors.push((format!("{name}.alpha"), Cow::Owned(comfyui::alpha(adapter)?)));
    }
    for ((name, end), delta) in &joined.deltas {
        let name = format!("{PREFIX}{}", names::flatten(name));
        tensors.push((format!("{name}.{end}"), Cow::Borrowed(delta)));
    }
    bytes::safetensors(&about, tensors)
}
