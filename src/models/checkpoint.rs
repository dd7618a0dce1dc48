//! A diffusers directory: `model_index.json` says what is in it, and so which family it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use candle_core::{DType, Device};

use super::{Family, FamilyName, rooms};

/// Texts of parts' `config.json`, by the part's name. They stand in for parts that are no longer there.
pub type Remembered = BTreeMap<String, String>;

/// Opens the checkpoint in `directory`; `family` is checked against what it says of itself.
///
/// # Errors
/// No such directory, no readable `model_index.json`, a pipeline of no family here.
pub fn open(directory: &Path, family: FamilyName, dtype: DType, device: &Device) -> anyhow::Result<Box<dyn Family>> {
    open_with(directory, family, dtype, device, &Remembered::new())
}

/// As [`open`], where parts that only encode may be gone: what they encoded is in a cache, and so are their configs.
///
/// # Errors
/// As [`open`]; a part that is neither there nor remembered.
pub fn open_with(
    directory: &Path,
    family: FamilyName,
    dtype: DType,
    device: &Device,
    remembered: &Remembered,
) -> anyhow::Result<Box<dyn Family>> {
    let room = rooms::of_checkpoint(directory)?;
    ensure!(
        family == FamilyName::Auto || family == room.name,
        "{}: is a checkpoint of {}, and model.family says {family:?}",
        directory.display(),
        room.title
    );
    (room.open)(directory, dtype, device, remembered)
}

/// A part of the checkpoint in `directory`, which must be there.
///
/// # Errors
/// No such folder.
pub fn part(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let folder = directory.join(name);
    ensure!(
        folder.is_dir(),
        "{}: the checkpoint has no {name}/, which this step needs; download it in full",
        directory.display()
    );
    Ok(folder)
}
