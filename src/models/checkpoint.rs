//! A diffusers directory: `model_index.json` says what is in it, and so which family it is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use candle_core::{DType, Device};
use serde_json::Value;

use super::{Family, FamilyName, rooms};
use crate::hub;
use crate::hub::layout::WeightFile;
use crate::nn::WeightFolder;
use crate::nn::weights::Reading;

/// Texts of parts' `config.json`, by the part's name. They stand in for parts that are no longer there.
pub type Remembered = BTreeMap<String, String>;

/// Opens the checkpoint in `directory`; `family` is checked against what it says of itself.
///
/// # Errors
/// No such directory, no readable `model_index.json`, a pipeline of no family here.
pub fn open(
    directory: impl Into<WeightFolder>,
    family: FamilyName,
    dtype: DType,
    device: &Device,
) -> anyhow::Result<Box<dyn Family>> {
    open_with(directory, family, &Reading::numbers(dtype, device), &Remembered::new())
}

/// As [`open`], read as `reading` says, where parts that only encode may be gone: what they encoded is in a cache, and so are
/// their configs.
///
/// # Errors
/// As [`open`]; a part that is neither there nor remembered; a variant that no part has.
pub fn open_with(
    directory: impl Into<WeightFolder>,
    family: FamilyName,
    reading: &Reading,
    remembered: &Remembered,
) -> anyhow::Result<Box<dyn Family>> {
    let directory: &WeightFolder = &directory.into();
    let room = rooms::of_checkpoint(directory)?;
    check_variant(directory)?;
    ensure!(
        family == FamilyName::Auto || family == room.name,
        "{}: is a checkpoint of {}, and model.family says {family:?}",
        directory.display(),
        room.title
    );
    (room.open)(directory, reading, remembered)
}

/// Says whether every part that the index of the checkpoint in `directory` names is there, with all files of its weights.
pub fn is_whole(directory: &WeightFolder) -> bool {
    let index = std::fs::read_to_string(directory.join("model_index.json"));
    let index: Option<Value> = index.ok().and_then(|text| serde_json::from_str(&text).ok());
    let Some(Value::Object(index)) = index else {
        return false;
    };
    // A part is named with its library and class; one that is left out has null for both.
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

/// Whether some part has the variant that is wanted: the others are read as usual, as diffusers does it.
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

/// A part of the checkpoint in `directory`, which must be there.
///
/// # Errors
/// No such folder.
pub fn part(directory: &WeightFolder, name: &str) -> anyhow::Result<WeightFolder> {
    let folder = directory.part(name);
    ensure!(
        folder.is_dir(),
        "{}: the checkpoint has no {name}/, which this step needs; download it in full",
        directory.display()
    );
    Ok(folder)
}
