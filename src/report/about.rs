//! `report/about.json`: what the page tells of a run that no other file of the run holds. Training writes it when it starts;
//! from then on the page can be made without the clips.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{Environment, FOLDER};
use crate::data::Bucket;
use crate::disk;

const FILE: &str = "about.json";

/// A list of clips is not longer.
const MAX_BYTES: u64 = 256 << 20;

/// What training knows when it starts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// Of the whole run.
    pub steps: u64,
    /// Frames a second of the model's clips.
    pub frame_rate: f64,
    pub environment: Environment,
    /// In the order of the data set.
    pub clips: Vec<Clip>,
}

/// A clip that is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Clip {
    /// The file's name.
    pub name: String,
    pub caption: String,
    pub bucket: Bucket,
    pub repeats: usize,
    /// Of what is taken of the clip.
    pub fps: f64,
    /// A picture's name in the report's folder, which is there once it was made.
    pub thumbnail: Option<String>,
}

impl About {
    /// Of the run in a folder; `None` where training left nothing of the kind, or something unknown.
    pub fn read(folder: &Path) -> Option<Self> {
        let path = folder.join(FOLDER).join(FILE);
        let size = std::fs::metadata(&path).ok()?.len();
        let bytes = (size <= MAX_BYTES).then(|| std::fs::read(&path).ok()).flatten()?;
        let about = serde_json::from_slice(&bytes).with_context(|| path.display().to_string());
        about
            .inspect_err(|error| log::warn!("{error:#}; the page goes without it"))
            .ok()
    }

    /// Leaves it in a run's folder.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let path = folder.join(FOLDER).join(FILE);
        Ok(disk::write_whole(&path, &serde_json::to_vec(self)?)?)
    }
}
