//! Adapter files of ComfyUI: `diffusion_model.<original name>.lora_A.weight`, `.lora_B.weight` and `.alpha`; the
//! difference of a whole weight is called `.diff`, of a bias `.diff_b`.
//!
//! ComfyUI scales by alpha / rank if there is an `alpha`, and by 1 otherwise. diffusers reads these files for LTX-Video
//! and Wan, but for LTX-Video it takes no `alpha` ([`Names::alpha_in_diffusers`]). So if the scale is a power of two,
//! which is nearly always, B is multiplied by it, which is exact, and no `alpha` is written; the header records it, and
//! reading undoes it. By other scales B is multiplied only if `alpha` cannot be used, in f32, which rounds adapters in
//! f32 once.
//!
//! Adapters of layers that are fused in the original checkpoint are joined ([`fused`]). Some layers have no name that both
//! programs read ([`Names::is_apart`]): they are there twice, as `.lora.down` and `.lora.up` under ComfyUI's name, and
//! under diffusers' own.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use super::adapters::{Adapter, Deltas};
use super::bytes::{self, Metadata, Tensors};
use super::format::COMFYUI_PREFIX as PREFIX;
use super::names::Names;
use super::{fused, metadata, settings};

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
    names: &'static Names,
    about: &Metadata,
) -> anyhow::Result<Vec<u8>> {
    let mut about = with_settings(adapters, about);
    let exactly: Option<Vec<Tensor>> = adapters.values().map(fold_exactly).collect::<Result<_>>()?; // all or none
    let (folded, how) = match exactly {
        None if !names.alpha_in_diffusers => (Some(adapters.values().map(fold).collect::<Result<_>>()?), WIDENED),
        exactly => (exactly, "true"),
    };
    if folded.is_some() {
        about.insert(FOLDED.into(), how.into());
    }
    let adapters: BTreeMap<String, Adapter> = match &folded {
        None => adapters.clone(),
        Some(folded) => {
            let layers = adapters.iter().zip(folded);
            layers
                .map(|((layer, adapter), b)| (layer.clone(), unscaled(adapter, b)))
                .collect()
        }
    };
    let joined = fused::join(&adapters, deltas, names)?;
    let mut tensors = Tensors::new();
    for (name, adapter) in &joined.layers {
        if names.is_apart(name) {
            tensors.extend(unread_by_diffusers(&names.in_comfyui(name), adapter)?);
            continue;
        }
        if folded.is_none() {
            tensors.push((format!("{PREFIX}{name}.alpha"), Cow::Owned(alpha(adapter)?)));
        }
        tensors.extend(matrices(name, adapter));
    }
    let is_apart = |layer: &str| names.original(layer).is_some_and(|name| names.is_apart(&name));
    for (layer, adapter) in adapters.iter().filter(|(layer, _)| is_apart(layer)) {
        tensors.extend(matrices(layer, adapter));
    }
    for ((name, end), delta) in &joined.deltas {
        tensors.push((format!("{PREFIX}{name}.{end}"), Cow::Borrowed(delta)));
    }
    bytes::safetensors(&about, tensors)
}

/// Returns an adapter with this B, which has the scale in it.
fn unscaled(adapter: &Adapter, b: &Tensor) -> Adapter {
    Adapter {
        a: adapter.a.clone(),
        b: b.clone(),
        alpha: adapter.rank() as f64,
        use_rslora: false,
    }
}

fn matrices<'a>(name: &str, adapter: &'a Adapter) -> [(String, Cow<'a, Tensor>); 2] {
    [("lora_A", &adapter.a), ("lora_B", &adapter.b)]
        .map(|(half, tensor)| (format!("{PREFIX}{name}.{half}.weight"), Cow::Borrowed(tensor)))
}

/// Returns the tensors of a layer that ComfyUI reads and diffusers passes over without a word, because no `lora_` is in
/// their names. diffusers halves some of them all the same, so a rank of 1 is made 2 by zeros.
fn unread_by_diffusers(name: &str, adapter: &Adapter) -> Result<[(String, Cow<'static, Tensor>); 2]> {
    let (mut a, mut b) = adapter.matrices()?;
    if adapter.rank() == 1 {
        (a, b) = (a.pad_with_zeros(0, 0, 1)?, b.pad_with_zeros(1, 0, 1)?);
    }
    Ok([("down", a), ("up", b)]
        .map(|(half, tensor)| (format!("{PREFIX}{name}.lora.{half}.weight"), Cow::Owned(tensor))))
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
