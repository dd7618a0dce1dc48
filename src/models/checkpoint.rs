//! A diffusers directory: `model_index.json` says what is in it, and so which family it is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use candle_core::{DType, Device};

use super::{Family, FamilyName, rooms};
use crate::hub::layout::WeightFile;
use crate::nn::WeightFolder;

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
    open_with(directory, family, dtype, device, &Remembered::new())
}

/// As [`open`], where parts that only encode may be gone: what they encoded is in a cache, and so are their configs.
///
/// # Errors
/// As [`open`]; a part that is neither there nor remembered; a variant that no part has.
pub fn open_with(
    directory: impl Into<WeightFolder>,
    family: FamilyName,
    dtype: DType,
    device: &Device,
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
    (room.open)(directory, dtype, device, remembered)
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
