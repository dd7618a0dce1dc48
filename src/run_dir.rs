//! The layout of a run's `output_dir`: what lies where.
//!
//! ```text
//! config.yaml                           the resolved run file
//! metrics.jsonl, tensorboard/           the log, one record per step
//! checkpoints/step-000500/              the newest checkpoints
//! validation/step-000500/00-<slug>.mp4  validation videos; step 0 is the base model
//! pytorch_lora_weights.safetensors      the finished adapter, as diffusers loads it
//! comfyui_lora.safetensors              the same for ComfyUI
//! README.md                             the model card
//! index.html, report/                   the page of the run, and what it shows beside the files above
//! precomputed/                          the cache, unless `precompute.dir` names another folder
//! previous-1/                           an earlier run, archived by `--resume never`
//! ```

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::disk::{self, WriteError};

/// File name of the adapter in diffusers' format, here and in checkpoints.
pub const ADAPTER: &str = "pytorch_lora_weights.safetensors";

/// File name of the adapter in ComfyUI's format, here and in checkpoints.
pub const COMFYUI_ADAPTER: &str = "comfyui_lora.safetensors";

/// File name of the model card.
pub const MODEL_CARD: &str = "README.md";

/// Folder of the clips' thumbnails, below the report's.
pub const THUMBNAILS: &str = "clips";

/// The `output_dir` of a run, which need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The run in a folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Name of the run: the folder's; none for `/`.
    pub fn name(&self) -> Option<String> {
        Some(self.0.file_name()?.to_string_lossy().into_owned())
    }

    /// The resolved run file.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.yaml")
    }

    /// The log.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// Folder of TensorBoard's event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.0.join("tensorboard")
    }

    /// Folder of the checkpoints, each in a folder called [`step_name`].
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// Folder of the validation videos, those of a step in a folder called [`step_name`].
    pub fn validation(&self) -> PathBuf {
        self.0.join("validation")
    }

    /// The page.
    pub fn page(&self) -> PathBuf {
        self.0.join("index.html")
    }

    /// Folder of what the page shows beside the run's other files.
    pub fn report(&self) -> PathBuf {
        self.0.join("report")
    }

    /// The cache of a run whose run file names no other.
    pub fn cache(&self) -> PathBuf {
        self.0.join("precomputed")
    }

    /// A path in this folder relative to it, with `/` between its parts; none for one that lies elsewhere.
    pub fn relative(&self, path: &Path) -> Option<String> {
        let parts = path.strip_prefix(&self.0).ok()?.iter();
        Some(parts.map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/"))
    }

    /// Removes what killed processes left half-written.
    pub fn sweep(&self) {
        let folders = [self.0.clone(), self.report().join(THUMBNAILS), self.report()];
        let steps = [self.validation(), self.checkpoints()].map(std::fs::read_dir);
        let steps = steps.into_iter().flatten().flatten().flatten();
        let folders = folders.into_iter().chain(steps.map(|entry| entry.path()));
        folders.for_each(|folder| disk::sweep(&folder));
    }

    /// Moves what an earlier run left to `previous-1`, `previous-2`, ... A run file alone is no run, and stays; so does the
    /// cache, which serves the next run, too.
    ///
    /// # Errors
    /// An entry that cannot be moved.
    pub fn archive(&self) -> anyhow::Result<()> {
        let run = [
            self.checkpoints(),
            self.config(),
            self.metrics(),
            self.tensorboard(),
            self.validation(),
            self.0.join(ADAPTER),
            self.0.join(COMFYUI_ADAPTER),
            self.0.join(MODEL_CARD),
            self.page(),
            self.report(),
        ];
        let left: Vec<PathBuf> = run.into_iter().filter(|path| path.exists()).collect();
        if left.iter().all(|path| *path == self.config()) {
            return Ok(());
        }
        let mut archives = (1..).map(|n| self.0.join(format!("previous-{n}")));
        let archive = archives.find(|path| !path.exists());
        let archive = archive.context("no number is free for the earlier run's folder")?;
        std::fs::create_dir_all(&archive).map_err(WriteError::at(&archive))?;
        for from in left {
            let to = archive.join(from.file_name().unwrap_or_default());
            std::fs::rename(&from, &to).map_err(WriteError::at(&to))?;
        }
        log::info!("what an earlier run left is now in {}", archive.display());
        Ok(())
    }
}

/// Name of a step's folder: `step-000500`.
pub fn step_name(step: u64) -> String {
    format!("step-{step:06}")
}

/// The step whose folder has this name.
pub fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    let digits = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    digits?.parse().ok()
}
