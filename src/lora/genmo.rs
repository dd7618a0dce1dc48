//! Adapter files of genmo's fine-tuner of Mochi 1: `blocks.0.attn.qkv_x.lora_A` (rank, in) and `.lora_B` (out, rank), under the
//! original names, for the projections of attention alone, in both streams.
//!
//! The header's `kwargs` is JSON: what its model is built with, a rank and an alpha for all projections to query, key and value
//! (`qkv_proj_lora_rank`, `qkv_proj_lora_alpha`) and for all from attention's output (`out_proj_...`). The scale is alpha /
//! rank. So every block has an adapter on each of them, of one rank. ComfyUI reads these files without the header, so with a
//! scale of 1.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};

use super::adapters::{Adapter, Deltas};
use super::bytes::{self, Metadata, Tensors};
use super::names::Names;
use super::{comfyui, fused};

/// Header key of the ranks and alphas.
pub const KWARGS: &str = "kwargs";

/// Layers that share a rank and an alpha.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Projection {
    /// To query, key and value.
    Qkv,
    /// From attention's output.
    Out,
}

impl Projection {
    const ALL: [Self; 2] = [Self::Qkv, Self::Out];

    /// Returns its start of keys in `kwargs`.
    fn key(self) -> &'static str {
        match self {
            Self::Qkv => "qkv_proj_lora",
            Self::Out => "out_proj_lora",
        }
    }

    /// Returns its modules in a block, those of the clip and of the text.
    fn modules(self) -> [&'static str; 2] {
        match self {
            Self::Qkv => ["qkv_x", "qkv_y"],
            Self::Out => ["proj_x", "proj_y"],
        }
    }
}

/// A layer by its original name.
struct Place {
    block: usize,
    projection: Projection,
}

impl Place {
    fn of(layer: &str) -> Option<Self> {
        let (block, module) = layer.strip_prefix("blocks.")?.split_once(".attn.")?;
        let mut all = Projection::ALL.into_iter();
        let projection = all.find(|projection| projection.modules().contains(&module))?;
        let block = block.parse().ok()?;
        Some(Self { block, projection })
    }
}

/// Alphas in a header.
#[derive(Debug)]
pub struct Alphas(BTreeMap<Projection, f64>);

impl Alphas {
    /// Reads `kwargs`; None for those of another program.
    ///
    /// # Errors
    /// Fails for a rank without an alpha.
    pub fn parse(text: &str) -> anyhow::Result<Option<Self>> {
        let Ok(Value::Object(kwargs)) = serde_json::from_str(text) else {
            return Ok(None);
        };
        let mut alphas = BTreeMap::new();
        let mut found = false;
        for projection in Projection::ALL {
            let key = |end: &str| format!("{}_{end}", projection.key());
            let Some(rank) = kwargs.get(&key("rank")) else {
                continue;
            };
            found = true;
            if rank.as_f64() == Some(0.0) {
                continue; // its layers have no adapters
            }
            let alpha = kwargs.get(&key("alpha")).and_then(Value::as_f64);
            let alpha = alpha.with_context(|| {
                format!(
                    "{} is {rank}, and {} is no number; it says how strong adapters are",
                    key("rank"),
                    key("alpha")
                )
            })?;
            alphas.insert(projection, alpha);
        }
        Ok(found.then_some(Self(alphas)))
    }

    /// Returns the alpha of a layer by its original name.
    pub fn alpha(&self, layer: &str) -> Option<f64> {
        self.0.get(&Place::of(layer)?.projection).copied()
    }
}

/// Writes adapters of a family, under its original names.
///
/// # Errors
/// Fails for adapters and differences that the program has no place for, for blocks that lack an adapter which others have,
/// for ranks or scales that differ, and for a non-finite number.
pub fn write(
    adapters: &BTreeMap<String, Adapter>,
    deltas: &Deltas,
    names: &'static Names,
    about: &Metadata,
) -> anyhow::Result<Vec<u8>> {
    if let Some(first) = deltas.keys().next() {
        bail!("{first} is added to as a whole, for which genmo's program has no place; convert to comfyui");
    }
    let joined = fused::join(adapters, deltas, names)?.layers;
    let mut groups: BTreeMap<Projection, Vec<(Place, &str, &Adapter)>> = BTreeMap::new();
    for (layer, adapter) in &joined {
        let place = Place::of(layer).with_context(|| {
            format!("{layer}: genmo's program has adapters on the attention of Mochi 1 alone; convert to comfyui")
        })?;
        groups
            .entry(place.projection)
            .or_default()
            .push((place, layer, adapter));
    }
    let last = groups.values().flatten().map(|(place, ..)| place.block).max();
    let mut kwargs = Map::new();
    for projection in Projection::ALL {
        let group = groups.get(&projection).map_or(&[][..], |group| group);
        ensure_all_blocks(projection, group, last.unwrap_or(0))?;
        let (rank, alpha) = shared_scale(group)?;
        kwargs.insert(format!("{}_rank", projection.key()), json!(rank));
        kwargs.insert(format!("{}_alpha", projection.key()), number(alpha));
        kwargs.insert(format!("{}_dropout", projection.key()), json!(0.0));
    }
    let mut about = comfyui::with_settings(adapters, about);
    about.insert(KWARGS.into(), Value::Object(kwargs).to_string());
    let mut tensors = Tensors::new();
    for (layer, Adapter { a, b, .. }) in &joined {
        tensors.push((format!("{layer}.lora_A"), Cow::Borrowed(a)));
        tensors.push((format!("{layer}.lora_B"), Cow::Borrowed(b)));
    }
    bytes::safetensors(&about, tensors)
}

/// Checks that there are adapters in all blocks, on both streams; the last block has no output for the text.
fn ensure_all_blocks(projection: Projection, group: &[(Place, &str, &Adapter)], last: usize) -> anyhow::Result<()> {
    if group.is_empty() {
        return Ok(());
    }
    let there: BTreeSet<&str> = group.iter().map(|(_, layer, _)| *layer).collect();
    let [clip, text] = projection.modules();
    let texts = if projection == Projection::Out { last } else { last + 1 };
    let wanted = (0..=last)
        .map(|block| (block, clip))
        .chain((0..texts).map(|block| (block, text)));
    let wanted = wanted.map(|(block, module)| format!("blocks.{block}.attn.{module}"));
    let missing: Vec<String> = wanted.filter(|layer| !there.contains(layer.as_str())).collect();
    ensure!(
        missing.is_empty(),
        "genmo's program wants an adapter on {clip} and {text} of every block; {} and {} more have none; train those, or \
         convert to comfyui",
        missing[0],
        missing.len() - 1
    );
    Ok(())
}

/// Returns the rank and the alpha of all layers of a group; 0 without any.
fn shared_scale(group: &[(Place, &str, &Adapter)]) -> anyhow::Result<(usize, f64)> {
    let Some((_, first, adapter)) = group.first() else {
        return Ok((0, 0.0));
    };
    for (_, layer, other) in group {
        ensure!(
            other.rank() == adapter.rank() && other.scale() == adapter.scale(),
            "genmo's files have one rank and one scale for such layers: {first} has {} and {}, and {layer} {} and {}; convert \
             to comfyui",
            adapter.rank(),
            adapter.scale(),
            other.rank(),
            other.scale()
        );
    }
    let alpha = match adapter.use_rslora {
        true => adapter.scale() * adapter.rank() as f64,
        false => adapter.alpha,
    };
    Ok((adapter.rank(), alpha))
}

/// Returns a number as JSON, a whole one without a point.
fn number(value: f64) -> Value {
    match value.fract() == 0.0 && value.abs() < 1e15 {
        true => json!(value as i64),
        false => json!(value),
    }
}
