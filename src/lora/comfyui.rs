//! Adapter files of ComfyUI: `diffusion_model.<original name>.lora_A.weight`, `.lora_B.weight` and `.alpha`; the
//! difference of a whole weight is called `.diff`, of a bias `.diff_b`.
//!
//! ComfyUI scales by alpha / rank if there is an `alpha`, and by 1 otherwise. diffusers reads these files for LTX-Video
//! and Wan, but for LTX-Video it takes no `alpha` ([`Names::alpha_in_diffusers`]). So if the scale is a power of two,
//! which is nearly always, B is multiplied by it, which is exact, and no `alpha` is written; the header records it, and
//! reading undoes it. By other scales B is multiplied only if `alpha` cannot be used, in f32, which rounds adapters in
//! f32 once.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use super::adapters::{Adapter, Deltas};
use super::bytes::{self, Metadata, Tensors};
use super::format::COMFYUI_PREFIX as PREFIX;
use super::names::Names;
use super::{metadata, settings};

/// Header key of the adapters' settings before they were written in this format, as `settings::PeftSettings`.
pub const SETTINGS: &str = "vtrain.lora_adapter_metadata";

/// Header key set if B was multiplied by the scale of those settings.
pub const FOLDED: &str = "vtrain.scale_in_lora_B";

/// Value of that key if B also had A's number format before.
pub const WIDENED: &str = "f32";

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
    let exactly: Option<Vec<Tensor>> = adapters.values().map(fold_exactly).collect::<Result<_>>()?; // all or none
    let (folded, how) = match exactly {
        None if !names.alpha_in_diffusers => (Some(adapters.values().map(fold).collect::<Result<_>>()?), WIDENED),
        exactly => (exactly, "true"),
    };
    let mut about = with_settings(adapters, about);
    if folded.is_some() {
        about.insert(FOLDED.into(), how.into());
    }
    let mut tensors = Tensors::new();
    for (index, (layer, adapter)) in adapters.iter().enumerate() {
        let name = format!("{PREFIX}{}", original(names, layer)?);
        tensors.push((format!("{name}.lora_A.weight"), Cow::Borrowed(&adapter.a)));
        let b = match &folded {
            Some(folded) => &folded[index],
            None => {
                tensors.push((format!("{name}.alpha"), Cow::Owned(alpha(adapter)?)));
                &adapter.b
            }
        };
        tensors.push((format!("{name}.lora_B.weight"), Cow::Borrowed(b)));
    }
    for (parameter, delta) in deltas {
        let (name, end) = difference(names, parameter)?;
        tensors.push((format!("{PREFIX}{name}.{end}"), Cow::Borrowed(delta)));
    }
    bytes::safetensors(&about, tensors)
}

/// Returns the name of a parameter's difference: the original name, and its suffix.
pub(super) fn difference(names: &Names, parameter: &str) -> anyhow::Result<(String, &'static str)> {
    let (layer, end) = match parameter.rsplit_once('.') {
        Some((layer, "weight")) => (layer, "diff"),
        Some((layer, "bias")) => (layer, "diff_b"),
        _ => (parameter, "diff"),
    };
    Ok((original(names, layer)?, end))
}

/// Returns a layer's original name.
pub(super) fn original(names: &Names, layer: &str) -> anyhow::Result<String> {
    let original = names.original(layer);
    original.ok_or_else(|| {
        anyhow::anyhow!(
            "{layer}: no layer of {} is called so; it has no name in this format",
            names.title
        )
    })
}

/// Returns `about` with the settings added.
pub(super) fn with_settings(adapters: &BTreeMap<String, Adapter>, about: &Metadata) -> Metadata {
    let mut about = about.clone();
    about.remove(settings::KEY); // diffusers would apply it a second time
    about.insert(SETTINGS.into(), metadata::text_of(adapters, false));
    about
}

/// Returns the alpha for which alpha / rank is the adapter's scale.
pub(super) fn alpha(adapter: &Adapter) -> Result<Tensor> {
    let alpha = adapter.scale() * adapter.rank() as f64;
    Tensor::new(alpha as f32, &Device::Cpu)
}

/// Returns B times the scale, in f32, whose range holds scaled half precision.
fn fold(adapter: &Adapter) -> Result<Tensor> {
    (adapter.b.to_dtype(DType::F64)? * adapter.scale())?.to_dtype(DType::F32)
}

/// Returns B times the scale, if dividing restores B's own bits.
fn fold_exactly(adapter: &Adapter) -> Result<Option<Tensor>> {
    let scale = adapter.scale();
    if !is_power_of_two(scale) {
        return Ok(None);
    }
    let folded = times(&adapter.b, scale)?;
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let back = unfold(&folded, scale)?;
    Ok((values(&back)? == values(&adapter.b)?).then_some(folded))
}

/// Returns B without the scale of [`fold`].
pub(super) fn unfold(b: &Tensor, scale: f64) -> Result<Tensor> {
    times(b, 1.0 / scale)
}

/// Multiplies in f64, which holds every product with a power of two.
fn times(tensor: &Tensor, factor: f64) -> Result<Tensor> {
    if factor == 1.0 {
        return Ok(tensor.clone());
    }
    (tensor.to_dtype(DType::F64)? * factor)?.to_dtype(tensor.dtype())
}

fn is_power_of_two(scale: f64) -> bool {
    (2f64.powi(-60)..=2f64.powi(60)).contains(&scale)
        && scale.log2().fract() == 0.0
        && 2f64.powi(scale.log2() as i32) == scale
}
