//! The only list of families: how a checkpoint is recognised, and what opens it. A new family is one line of it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::bare::Bare;
use super::checkpoint::Remembered;
use super::{Family, FamilyName, cogvideox, ltx_video, single, wan};
use crate::data::Bucket;
use crate::data::cache::Footprint;
use crate::lora::names::Names;
use crate::magic;
use crate::nn::weights::{Planter, Reading};
use crate::nn::{WeightFolder, Weights};

/// Every family, in the order they were built.
pub static ROOMS: &[Room] = &[cogvideox::ROOM, ltx_video::ROOM, wan::ROOM];

/// No index and no config is larger.
const MAX_BYTES: u64 = 1 << 20;

/// What each family says of itself, in its `mod.rs`.
pub struct Room {
    pub name: FamilyName,
    /// For people.
    pub title: &'static str,
    /// Of its layers, here and elsewhere.
    pub names: &'static Names,
    /// `_class_name` of its pipelines in `model_index.json`: what it begins with.
    pub pipeline: &'static str,
    /// `_class_name` in `transformer/config.json`.
    pub transformer: &'static str,
    /// What names of its published repositories have in them, in small letters.
    pub repository: &'static str,
    pub open: Open,
    pub bare: BareOpen,
    /// Of the published checkpoints.
    pub footprint: Footprint,
    /// Of the checkpoint in a directory; none where its configs cannot be read.
    pub footprint_of: fn(&Path) -> Option<Footprint>,
}

/// Opens a checkpoint by its directory; configs of parts that are gone may be remembered.
pub type Open = fn(&WeightFolder, &Reading, &Remembered) -> anyhow::Result<Box<dyn Family>>;

/// Builds the transformer whose config is in a folder, and an input of so many clips of a bucket.
pub type BareOpen = fn(&Path, Weights, Option<Arc<dyn Planter>>, Bucket, usize) -> anyhow::Result<Bare>;

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title)
    }
}

/// What the layers of every family are called.
pub fn names() -> Vec<&'static Names> {
    ROOMS.iter().map(|room| room.names).collect()
}

/// The family of the diffusers directory `directory`, by its pipeline's class.
///
/// # Errors
/// No directory, no readable index, a pipeline of no family here.
pub fn of_checkpoint(directory: &Path) -> anyhow::Result<&'static Room> {
    let shown = directory.display();
    ensure!(!directory.is_file(), "{shown}: {}", single::explain(directory));
    ensure!(
        directory.is_dir(),
        "{shown}: no such directory; give a diffusers checkpoint"
    );
    let path = directory.join("model_index.json");
    ensure!(
        path.exists(),
        "{}: is not there; this is no diffusers checkpoint{}",
        path.display(),
        single::nearby(directory)
    );
    find(&path, |room, class| class.starts_with(room.pipeline))
}

/// The family of the transformer whose `config.json` is in `folder`, by its class.
///
/// # Errors
/// No readable config, a class of no family here.
pub fn of_transformer(folder: &Path) -> anyhow::Result<&'static Room> {
    find(&folder.join("config.json"), |room, class| class == room.transformer)
}

fn find(path: &Path, is: impl Fn(&Room, &str) -> bool) -> anyhow::Result<&'static Room> {
    let class = class_name(path).with_context(|| path.display().to_string())?;
    let Some(room) = ROOMS.iter().find(|room| is(room, &class)) else {
        let known: Vec<&str> = ROOMS.iter().map(|room| room.title).collect();
        bail!(
            "{}: {class} is of no family that vtrain knows; it knows {}",
            path.display(),
            known.join(", ")
        );
    };
    Ok(room)
}

fn class_name(path: &Path) -> anyhow::Result<String> {
    let size = std::fs::metadata(path)?.len();
    ensure!(size <= MAX_BYTES, "{size} bytes are too many");
    magic::refuse(path)?;
    let config: Value = serde_json::from_str(&std::fs::read_to_string(path)?).context("not JSON")?;
    let class = config.get("_class_name").and_then(Value::as_str);
    Ok(class.context("no _class_name")?.to_string())
}
