//! A diffusers directory: `model_index.json` says what is in it, and so which family it is.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device};
use serde_json::Value;

use super::{Family, FamilyName, cogvideox};

/// No index is larger.
const MAX_BYTES: u64 = 1 << 20;

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
    let found = identify(directory)?;
    ensure!(
        family == FamilyName::Auto || family == found,
        "{}: is a checkpoint of {found:?}, not of {family:?}",
        directory.display()
    );
    match found {
        FamilyName::CogVideoX => Ok(Box::new(cogvideox::CogVideoX::open(
            directory, dtype, device, remembered,
        )?)),
        FamilyName::Auto => unreachable!("`identify` names a family"),
    }
}

/// The family of the checkpoint in `directory`, by its pipeline's class.
fn identify(directory: &Path) -> anyhow::Result<FamilyName> {
    ensure!(
        directory.is_dir(),
        "{}: no such directory; give a diffusers checkpoint",
        directory.display()
    );
    let path = directory.join("model_index.json");
    let shown = path.display();
    let size = std::fs::metadata(&path)
        .with_context(|| format!("{shown}: this is no diffusers checkpoint"))?
        .len();
    ensure!(size <= MAX_BYTES, "{shown}: {size} bytes are too many for an index");
    let text = std::fs::read_to_string(&path).with_context(|| shown.to_string())?;
    let index: Value = serde_json::from_str(&text).with_context(|| format!("{shown}: not JSON"))?;
    let class = index
        .get("_class_name")
        .and_then(Value::as_str)
        .with_context(|| format!("{shown}: no _class_name"))?;
    if class.starts_with("CogVideoX") {
        return Ok(FamilyName::CogVideoX);
    }
    bail!("{shown}: the pipeline {class} is of no family that vtrain knows; it knows CogVideoX")
}
