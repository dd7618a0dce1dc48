//! `report/about.json`: facts for the page that no other file of the run holds. Training writes it when it starts; from
//! then on the page can be made without the clips.

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Environment;
use crate::data::Bucket;
use crate::disk;
use crate::run_dir::RunDir;

const FILE: &str = "about.json";

/// Upper limit for the file.
const MAX_BYTES: u64 = 256 << 20;

/// Facts known when training starts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// Steps of the whole run.
    pub steps: u64,
    /// Frames per second of the model's clips.
    pub frame_rate: f64,
    /// Machine, versions and device.
    pub environment: Environment,
    /// Clips in the order of the data set.
    pub clips: Vec<Clip>,
}

/// A training clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Clip {
    /// File name.
    pub name: String,
    /// Caption as it is encoded.
    pub caption: String,
    /// Bucket that the clip is fitted to.
    pub bucket: Bucket,
    /// Number of times the clip is seen in an epoch.
    pub repeats: usize,
    /// Frames per second of the selected frames.
    pub fps: f64,
    /// Name of a thumbnail in the report's folder, which exists once it was made.
    pub thumbnail: Option<String>,
}

impl About {
    /// Reads what training left; `None` where that is nothing of the kind, or something unknown.
    pub fn read(dir: &RunDir) -> Option<Self> {
        let path = dir.report().join(FILE);
        let size = std::fs::metadata(&path).ok()?.len();
        let bytes = (size <= MAX_BYTES).then(|| std::fs::read(&path).ok()).flatten()?;
        let about = serde_json::from_slice(&bytes).with_context(|| path.display().to_string());
        about
            .inspect_err(|error| log::warn!("{error:#}; the page omits it"))
            .ok()
    }

    /// Leaves it in a run's folder.
    pub fn write(&self, dir: &RunDir) -> anyhow::Result<()> {
        let path = dir.report().join(FILE);
        Ok(disk::write_whole(&path, &serde_json::to_vec(self)?)?)
    }
}
