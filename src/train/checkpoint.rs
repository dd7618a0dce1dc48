//! Checkpoints from which a run can resume.
//!
//! ```text
//! checkpoints/step-000500/
//!   pytorch_lora_weights.safetensors   the adapters, as diffusers loads them
//!   optimizer.safetensors              the optimiser's tensors
//!   state.json                         the run's progress, its settings, and a checksum of everything
//! ```
//!
//! A checkpoint is written as a whole folder, and older ones are removed only when it is in place. A damaged one is
//! logged and skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::disk::space::{self, NotEnoughSpace};
use crate::disk::{self, WriteError};
use crate::problems::Problems;
use crate::run_dir::{self, RunDir};

mod snapshot;

use snapshot::step_of;
pub use snapshot::{DATA, Loaded, Snapshot, State};

/// `checkpoint:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Steps between checkpoints.
    pub every: usize,
    /// Number of checkpoints that are kept, the newest ones.
    pub limit: usize,
    /// Write the adapter for ComfyUI into each, too.
    pub comfyui: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            every: 500,
            limit: 2,
            comfyui: false,
        }
    }
}

impl Config {
    /// Checks for values that parse but make no sense, by path below `checkpoint`.
    pub fn check(&self, problems: &mut Problems) {
        problems.at_least_one("every", self.every);
        problems.at_least_one("limit", self.limit);
    }
}

/// Bytes that the folder itself may occupy.
const ROOM_FOR_FOLDER: u64 = 16 << 10;

/// Checkpoints of a run.
#[derive(Debug)]
pub struct Checkpoints {
    /// How often they are written, how many are kept, and what is in them.
    pub config: Config,
    folder: PathBuf,
}

impl Checkpoints {
    /// The checkpoints of a run. What a killed process left half-written goes.
    pub fn new(dir: &RunDir, config: &Config) -> Self {
        let folder = dir.checkpoints();
        disk::sweep(&folder);
        Self {
            config: config.clone(),
            folder,
        }
    }

    fn limit(&self) -> usize {
        self.config.limit.max(1)
    }

    /// Writes a checkpoint; then removes those beyond the limit.
    ///
    /// Checkpoints of later steps are removed, too: the run has diverged from them (it resumed before them, or started
    /// anew), and none of them may be taken for its newest.
    ///
    /// # Errors
    /// Fails for too little space, found before anything is written, and for a file that cannot be written, by path.
    /// All checkpoints from which a run could resume are then unchanged.
    pub fn save(&self, snapshot: &Snapshot) -> anyhow::Result<PathBuf> {
        self.save_with(snapshot, &[])
    }

    /// Same as [`save`](Self::save), with more files in the folder, by name.
    pub fn save_with(&self, snapshot: &Snapshot, more: &[(&str, Vec<u8>)]) -> anyhow::Result<PathBuf> {
        let step = snapshot.state.step;
        let path = self.folder.join(run_dir::step_name(step));
        let files = snapshot.files()?;
        let sizes = files.iter().chain(more).map(|(_, bytes)| bytes.len() as u64);
        self.ensure_room(space::taken(sizes))
            .with_context(|| self.what_is_lost(step))?;
        disk::with_retries(|| {
            disk::write_folder_whole(&path, |unfinished| {
                for (name, bytes) in files.iter().chain(more) {
                    // Errors name the folder's final path, which the user knows.
                    std::fs::write(unfinished.join(name), bytes).map_err(WriteError::at(&path.join(name)))?;
                }
                Ok(())
            })
        })
        .with_context(|| self.what_is_lost(step))?;
        self.rotate(step);
        Ok(path)
    }

    /// Checks that the next checkpoint, of the same size, will fit: called before a step is computed for it.
    pub fn check_space(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let files = snapshot.files()?;
        let sizes = files.iter().map(|(_, bytes)| bytes.len() as u64);
        Ok(self.ensure_room(space::taken(sizes))?)
    }

    /// Checks that a checkpoint of this size can be written. If space is short, outdated checkpoints are removed first;
    /// the newest `limit` readable ones are always kept.
    fn ensure_room(&self, bytes: u64) -> Result<(), NotEnoughSpace> {
        let needed = bytes.saturating_add(ROOM_FOR_FOLDER);
        let ensure = || space::ensure(&self.folder, needed, || "a checkpoint".into());
        ensure().or_else(|_| {
            self.remove_useless();
            ensure()
        })
    }

    /// Removes damaged checkpoints, and those older than the newest `limit` readable ones.
    fn remove_useless(&self) {
        let mut good = 0;
        for path in self.list().unwrap_or_default().values().rev() {
            if good < self.limit() && Loaded::read(path).is_ok() {
                good += 1;
            } else {
                remove(path);
            }
        }
    }

    /// Returns a message for the user of a run that cannot save.
    fn what_is_lost(&self, step: u64) -> String {
        let newest = self.list().unwrap_or_default().into_keys().rfind(|&saved| saved < step);
        match newest {
            Some(newest) => {
                format!("step {step} is not saved; when started again, the run resumes from step {newest}")
            }
            None => format!("step {step} is not saved, and there is no checkpoint before it"),
        }
    }

    /// Returns the newest readable checkpoint; `None` without any checkpoints.
    ///
    /// # Errors
    /// Fails if there are checkpoints, but all of them are damaged.
    pub fn newest(&self) -> anyhow::Result<Option<Loaded>> {
        let there = self.list()?;
        for (_, path) in there.iter().rev() {
            match Loaded::read(path) {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(error) => log::warn!("skipping a damaged checkpoint: {error:#}"),
            }
        }
        ensure!(
            there.is_empty(),
            "{}: none of the {} checkpoints can be read; start anew with --resume never",
            self.folder.display(),
            there.len()
        );
        Ok(None)
    }

    /// Returns the folders named as checkpoints, by step.
    fn list(&self) -> anyhow::Result<BTreeMap<u64, PathBuf>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error).with_context(|| format!("{}: cannot be read", self.folder.display())),
        };
        let mut found = BTreeMap::new();
        for entry in entries {
            let path = entry
                .with_context(|| format!("{}: cannot be read", self.folder.display()))?
                .path();
            if let Some(step) = step_of(&path).filter(|_| path.is_dir()) {
                found.insert(step, path);
            }
        }
        Ok(found)
    }

    /// Keeps the newest `limit` up to this one, and none after it, which belong to another course.
    fn rotate(&self, saved: u64) {
        self.remove_older(saved);
        let there = self.list().unwrap_or_default();
        there
            .range(saved.saturating_add(1)..)
            .for_each(|(_, path)| remove(path));
    }

    /// Removes those older than the newest `limit` up to this one, including leftovers of a run that was killed before
    /// it removed them. A surplus checkpoint does no harm, so a failure is only logged.
    pub fn remove_older(&self, saved: u64) {
        let there = self.list().unwrap_or_default();
        let older = there.range(..=saved).rev().skip(self.limit());
        older.for_each(|(_, path)| remove(path));
    }
}

fn remove(path: &Path) {
    if let Err(error) = disk::remove_folder_whole(path) {
        log::warn!("{}: the old checkpoint cannot be removed: {error}", path.display());
    }
}
