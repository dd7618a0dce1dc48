//! The families of models, what all of them answer, and the only list of them (`rooms`).

use std::path::{Path, PathBuf};

use candle_core::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::cache::Footprint;
use crate::nn::WeightFolder;

pub mod bare;
mod checkpoint;
pub mod cogvideox;
pub mod denoiser;
pub mod family;
pub mod ltx_video;
pub mod modulated;
pub mod places;
pub mod prompts;
pub mod rooms;
mod single;
pub mod statistics;
pub mod tiling;
pub mod transformer;
pub mod vae;
pub mod wan;

pub use checkpoint::{Remembered, is_whole, open, open_with, part};
pub use family::Family;

/// `model:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which family; `auto` reads it from the checkpoint's `model_index.json`.
    pub family: FamilyName,
    /// A diffusers directory, or a repository of the Hugging Face Hub (`THUDM/CogVideoX-5b`).
    pub path: String,
    /// Branch, tag or commit of a Hub repository.
    pub revision: String,
    /// Which variant of the weights: `fp16` reads `model.fp16.safetensors`. Parts without it are read as usual; without a
    /// choice, a variant is read only where there is nothing else.
    pub variant: Option<String>,
    /// What the frozen weights are kept in.
    pub dtype: Dtype,
    /// Whether several processes that train together share out the frozen weights.
    pub sharding: Sharding,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            family: FamilyName::Auto,
            path: String::new(),
            revision: "main".into(),
            variant: None,
            dtype: Dtype::Bf16,
            sharding: Sharding::None,
        }
    }
}

impl Config {
    /// Values that parse but make no sense, by path below `model`.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        if self.path.trim().is_empty() {
            wrong.push((
                "path".into(),
                "is required: a diffusers directory or a Hub repository".into(),
            ));
        }
        if self.revision.trim().is_empty() {
            wrong.push(("revision".into(), "must not be empty; the default is main".into()));
        }
        if let Some(variant) = &self.variant
            && (variant.is_empty()
                || !variant
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')))
        {
            let message = format!("'{variant}' is no variant, such as fp16 in model.fp16.safetensors");
            wrong.push(("variant".into(), message));
        }
        wrong
    }

    /// The checkpoint, which lies in `directory`.
    pub fn folder(&self, directory: &Path) -> WeightFolder {
        WeightFolder::new(directory, self.variant.as_deref())
    }

    /// Makes a directory's path absolute. `owner/name` is a directory where there is one, else a Hub repository.
    pub fn resolve(&mut self, folder: &Path) {
        let path = Path::new(&self.path);
        let looks_local = path.is_absolute() || self.path.starts_with('.') || self.path.matches('/').count() != 1;
        if looks_local || folder.join(path).is_dir() {
            self.path = tidy(&folder.join(path)).to_string_lossy().into_owned();
        }
    }

    /// The directory, where `path` is one.
    pub fn directory(&self) -> Option<PathBuf> {
        Some(PathBuf::from(&self.path)).filter(|path| path.is_absolute())
    }

    /// What a clip and a caption take up encoded: by the directory's own configs, else as the family's published
    /// checkpoints have it; none where the family cannot be told yet.
    pub fn footprint(&self) -> Option<Footprint> {
        let directory = self.directory();
        let here = directory.as_deref().and_then(|directory| {
            let room = rooms::of_checkpoint(directory).ok()?;
            Some((room.footprint_of)(directory).unwrap_or(room.footprint))
        });
        here.or_else(|| {
            let path = self.path.to_lowercase();
            let mut rooms = rooms::ROOMS.iter();
            let room = rooms.find(|room| match self.family {
                FamilyName::Auto => path.contains(room.repository),
                family => family == room.name,
            });
            Some(room?.footprint)
        })
    }
}

/// Number format of the frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    F32,
    Bf16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

/// Where the transformer's frozen weights are, with several processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sharding {
    /// All on each.
    #[default]
    None,
    /// Each keeps its part of every block, and has whole blocks only while they run: for models larger than one GPU.
    Full,
}

/// The families, by their names in run files; `rooms` says what is behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FamilyName {
    #[serde(rename = "auto")]
    Auto,
    #[serde(rename = "cogvideox")]
    CogVideoX,
    #[serde(rename = "ltx_video")]
    LtxVideo,
    #[serde(rename = "wan")]
    Wan,
}

/// Takes `.` and `..` out of an absolute path without asking the disk.
pub fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if tidy.file_name().is_some() => {
                tidy.pop();
            }
            part => tidy.push(part),
        }
    }
    tidy
}
