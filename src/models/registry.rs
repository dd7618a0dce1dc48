//! Registry of families: how a checkpoint is recognised, and what opens it. A new family adds one line.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::family::FamilySpec;
use super::synthetic::{SyntheticBatch, SyntheticRequest};
use super::{allegro, cogvideox, hunyuan_video, ltx_video, mochi, single_file, wan};
use crate::data::Bucket;
use crate::diffusers_config as config;
use crate::lora::names::Names;
use crate::nn::{WeightFolder, Weights};

/// All families, in the order of their implementation.
pub static FAMILIES: &[&FamilySpec] = &[
    &cogvideox::SPEC,
    &ltx_video::SPEC,
    &wan::SPEC,
    &hunyuan_video::SPEC,
    &mochi::SPEC,
    &allegro::SPEC,
];

/// Returns the layer names of every family.
pub fn names() -> Vec<&'static Names> {
    FAMILIES.iter().map(|spec| spec.names).collect()
}

/// Returns the family of the diffusers directory `directory`, by its pipeline's class.
///
/// # Errors
/// Fails without a directory or a readable index, and for a pipeline of an unsupported family.
pub fn of_checkpoint(directory: &Path) -> anyhow::Result<&'static FamilySpec> {
    let shown = directory.display();
    ensure!(!directory.is_file(), "{shown}: {}", single_file::explain(directory));
    ensure!(
        directory.is_dir(),
        "{shown}: no such directory; give a diffusers checkpoint"
    );
    let path = directory.join("model_index.json");
    ensure!(
        path.exists(),
        "{}: does not exist; this is not a diffusers checkpoint{}",
        path.display(),
        single_file::nearby(directory)
    );
    find(&path, |spec, class| class.starts_with(spec.pipeline))
}

/// Returns the family of the transformer whose `config.json` is in `folder`, by its class.
///
/// # Errors
/// Fails without a readable config, and for a class of an unsupported family.
pub fn of_transformer(folder: &Path) -> anyhow::Result<&'static FamilySpec> {
    find(&folder.join("config.json"), |spec, class| class == spec.transformer)
}

fn find(path: &Path, is: impl Fn(&FamilySpec, &str) -> bool) -> anyhow::Result<&'static FamilySpec> {
    let class = class_name(path).with_context(|| path.display().to_string())?;
    let Some(spec) = FAMILIES.iter().find(|spec| is(spec, &class)) else {
        let known: Vec<&str> = FAMILIES.iter().map(|spec| spec.title).collect();
        bail!(
            "{}: {class} is not of a supported family; supported are {}",
            path.display(),
            known.join(", ")
        );
    };
    Ok(spec)
}

fn class_name(path: &Path) -> anyhow::Result<String> {
    let config: Value = serde_json::from_str(&config::text(path)?).context("not JSON")?;
    let class = config.get("_class_name").and_then(Value::as_str);
    Ok(class.context("no _class_name")?.to_string())
}

/// Builds the transformer of the checkpoint in `directory` with `weights`, and draws an input of `batch` clips of a bucket.
///
/// # Errors
/// Fails without a readable `transformer/config.json`, for an unsupported family, and for a bucket that does not fit
/// the model.
pub fn open_synthetic(
    directory: impl Into<WeightFolder>,
    weights: Weights,
    bucket: Bucket,
    batch: usize,
) -> anyhow::Result<SyntheticBatch> {
    let folder = directory.into().part("transformer");
    let spec = of_transformer(&folder)?;
    let synthetic = (spec.synthetic)(&folder)?;
    let request = SyntheticRequest {
        grid: synthetic.grid(bucket, &spec.footprint)?,
        batch,
        frame_rate: spec.frame_rate,
        text_tokens: None,
    };
    synthetic.transformer(weights)?.batch(&request)
}
