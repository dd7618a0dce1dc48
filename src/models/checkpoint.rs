//! A diffusers directory: `model_index.json` lists its parts, and so decides its family.

use std::collections::BTreeSet;

use anyhow::ensure;
use serde_json::Value;

use super::checkpoint_dir::{CachedConfigs, CheckpointDir};
use super::{Family, FamilyName, registry};
use crate::hub;
use crate::hub::layout::WeightFile;
use crate::nn::WeightFolder;

/// Opens the checkpoint in `directory`; `family` is checked against the checkpoint's own.
///
/// # Errors
/// Fails without such a directory or a readable `model_index.json`, and for a pipeline of an unsupported family.
pub fn open(directory: impl Into<WeightFolder>, family: FamilyName) -> anyhow::Result<Box<dyn Family>> {
    open_with(directory, family, &CachedConfigs::new())
}

/// Same as [`open`]. Parts that only encode may be missing, if their encodings and their configs are in a cache.
///
/// # Errors
/// Same as [`open`]; also for a part that is neither present nor cached, and a variant that no part has.
pub fn open_with(
    directory: impl Into<WeightFolder>,
    family: FamilyName,
    cached: &CachedConfigs,
) -> anyhow::Result<Box<dyn Family>> {
    let folder: &WeightFolder = &directory.into();
    let spec = registry::of_checkpoint(folder)?;
    check_variant(folder)?;
    ensure!(
        family == FamilyName::Auto || family == spec.name,
        "{}: is a checkpoint of {}, but model.family is {family:?}",
        folder.display(),
        spec.title
    );
    (spec.open)(&CheckpointDir { folder, cached })
}

/// Checks that every part listed in the index of the checkpoint in `directory` exists, with all weight files.
pub fn is_whole(directory: &WeightFolder) -> bool {
    let index = std::fs::read_to_string(directory.join("model_index.json"));
    let index: Option<Value> = index.ok().and_then(|text| serde_json::from_str(&text).ok());
    let Some(Value::Object(index)) = index else {
        return false;
    };
    // A part has a library and a class; an omitted one has null for both.
    let named = |value: &Value| value.as_array().is_some_and(|class| class.iter().all(Value::is_string));
    let parts = index.iter().filter(|(_, value)| named(value)).map(|(part, _)| part);
    let mut used = parts.filter(|part| hub::fetch::PARTS.contains(&part.as_str()));
    used.all(|part| {
        let folder = directory.part(part);
        match folder.join("config.json").is_file() {
            true => folder.files().is_ok(),
            false => folder.is_dir() && hub::fetch::WITHOUT_WEIGHTS.contains(&part.as_str()),
        }
    })
}

/// Checks that some part has the requested variant: the others are read as usual, as in diffusers.
fn check_variant(directory: &WeightFolder) -> anyhow::Result<()> {
    let Some(wanted) = directory.variant() else {
        return Ok(());
    };
    let mut there = BTreeSet::new();
    for part in std::fs::read_dir(directory)?
        .flatten()
        .filter(|part| part.path().is_dir())
    {
        for file in std::fs::read_dir(part.path())?.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            there.extend(WeightFile::of(&name).and_then(|file| file.variant.map(String::from)));
        }
    }
    ensure!(
        there.contains(wanted),
        "{}: no part of it has weights of the variant {wanted} (model.variant; sample: --variant); it has {}",
        directory.display(),
        match there.len() {
            0 => "no variant at all".to_string(),
            _ => there.into_iter().collect::<Vec<_>>().join(", "),
        }
    );
    Ok(())
}
