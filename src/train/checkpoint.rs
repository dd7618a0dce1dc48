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

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{config_diff, data_diff};
use crate::data::cache::SampleListing;
use crate::disk::space::{self, NotEnoughSpace};
use crate::disk::{self, WriteError};
use crate::run_dir::{self, ADAPTER, RunDir};

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
    /// Returns values that parse but make no sense, by path below `checkpoint`.
    pub fn check(&self) -> Vec<(String, String)> {
        [("every", self.every), ("limit", self.limit)]
            .into_iter()
            .filter(|(_, value)| *value == 0)
            .map(|(key, _)| (key.to_string(), "must be at least 1, got 0".to_string()))
            .collect()
    }
}

const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Bytes that the folder itself may occupy.
const ROOM_FOR_FOLDER: u64 = 16 << 10;
/// Format of `state.json`. Incremented by a version that changes it.
const FORMAT: u32 = 2;
/// Format of checkpoints that do not list their samples.
const WITHOUT_SAMPLES: u32 = 1;

/// Name of the data's fingerprint.
pub const DATA: &str = "data";

/// Progress and identity of a run after a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Completed steps.
    pub step: u64,
    /// Clips trained on so far, including repeats.
    pub samples_seen: u64,
    /// Steps without an update, because a loss or a gradient was not finite.
    pub skipped: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Processes that train together.
    pub world_size: usize,
    /// Clips per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step on each process.
    pub gradient_accumulation_steps: usize,
    /// Settings that change the result, as in a run file.
    pub run: Value,
    /// Fingerprints of what was trained, and on what: transformer and data.
    pub fingerprints: BTreeMap<String, String>,
    /// Samples that the data's fingerprint covers; empty in checkpoints of format 1.
    #[serde(default)]
    pub samples: Vec<SampleListing>,
}

/// Contents of a checkpoint.
#[derive(Debug)]
pub struct Snapshot {
    /// The adapters as a safetensors file.
    pub adapter: Vec<u8>,
    /// Tensors named like `<layer>.lora_A.exp_avg`.
    pub optimizer: BTreeMap<String, Tensor>,
    /// Progress and identity of the run.
    pub state: State,
}

/// A checkpoint read back, its tensors in main memory.
#[derive(Debug)]
pub struct Loaded {
    /// Folder of the checkpoint.
    pub path: PathBuf,
    /// Contents.
    pub snapshot: Snapshot,
}

/// Checkpoints of a run.
#[derive(Debug)]
pub struct Checkpoints {
    /// How often they are written, how many are kept, and what is in them.
    pub config: Config,
    folder: PathBuf,
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    state: Value,
    /// BLAKE3 of the files, and of the state as compact JSON.
    checksums: BTreeMap<String, String>,
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

impl Snapshot {
    /// Returns the files of a checkpoint, by name.
    fn files(&self) -> anyhow::Result<[(&'static str, Vec<u8>); 3]> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &self.optimizer {
            tensors.insert(name, tensor.to_device(&Device::Cpu)?);
        }
        let optimizer = safetensors::serialize(tensors, None).context("the optimiser's tensors")?;
        let state = serde_json::to_value(&self.state)?;
        let written = Written {
            format: FORMAT,
            checksums: BTreeMap::from([
                (ADAPTER.into(), checksum(&self.adapter)),
                (OPTIMIZER.into(), checksum(&optimizer)),
                (STATE.into(), checksum_of(&read_back(&state)?)?),
            ]),
            state,
        };
        Ok([
            (ADAPTER, self.adapter.clone()),
            (OPTIMIZER, optimizer),
            (STATE, serde_json::to_vec_pretty(&written)?),
        ])
    }
}

impl Loaded {
    /// Returns the time of writing; None if the file system does not record it.
    pub fn written(&self) -> Option<SystemTime> {
        std::fs::metadata(self.path.join(STATE)).ok()?.modified().ok()
    }

    /// Reads a checkpoint folder.
    ///
    /// # Errors
    /// Fails for a file that is missing, cannot be read, or differs from what was written, by file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        ensure!(path.is_dir(), "{}: not a checkpoint folder", path.display());
        let file = path.join(STATE);
        let (state, checksums) = read_state(&bytes_of(&file)?).with_context(|| file.display().to_string())?;
        let tensors = |name: &str| {
            let file = path.join(name);
            let bytes = bytes_of(&file)?;
            let same = checksums.get(name).is_some_and(|written| *written == checksum(&bytes));
            ensure!(
                same,
                "{}: is not what was written: its checksum differs",
                file.display()
            );
            let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
                .with_context(|| format!("{}: not a readable safetensors file", file.display()))?;
            anyhow::Ok((bytes, tensors))
        };
        let (adapter, _) = tensors(ADAPTER)?;
        let (_, optimizer): (_, HashMap<_, _>) = tensors(OPTIMIZER)?;
        if let Some(named) = step_of(path)
            && named != state.step
        {
            bail!("{}: holds step {}, unlike its name", path.display(), state.step);
        }
        Ok(Self {
            path: path.into(),
            snapshot: Snapshot {
                adapter,
                optimizer: optimizer.into_iter().collect(),
                state,
            },
        })
    }

    /// Checks that a run with these settings and fingerprints can resume from here.
    ///
    /// # Errors
    /// Lists the differences, one per line.
    pub fn fits(
        &self,
        run: &Value,
        fingerprints: &BTreeMap<String, String>,
        samples: &[SampleListing],
    ) -> anyhow::Result<()> {
        let state = &self.snapshot.state;
        let mut different = config_diff::list(&state.run, &read_back(run)?);
        for line in &mut different {
            if line.starts_with("train.gradient_accumulation_steps") {
                line.push_str(" (counted over all ranks)");
            }
        }
        for (what, print) in fingerprints {
            match state.fingerprints.get(what) {
                Some(then) if then == print => {}
                Some(_) => {
                    different.push(format!("{what}: has changed since the checkpoint was written"));
                    if what == DATA {
                        let lines = data_diff::list(&state.samples, samples);
                        different.extend(lines.into_iter().map(|line| format!("  {line}")));
                    }
                }
                None => different.push(format!("{what}: is not known to the checkpoint")),
            }
        }
        ensure!(
            different.is_empty(),
            "{}: this is another run than the one that wrote the checkpoint:\n  {}\n\
             Take back the changes, or start anew with --resume never (in another output_dir, to keep both)",
            self.path.display(),
            different.join("\n  ")
        );
        Ok(())
    }
}

fn read_state(bytes: &[u8]) -> anyhow::Result<(State, BTreeMap<String, String>)> {
    let json: Value = serde_json::from_slice(bytes).context("not JSON")?;
    let format = json.get("format").and_then(Value::as_u64);
    ensure!(
        [WITHOUT_SAMPLES, FORMAT]
            .map(|format| Some(u64::from(format)))
            .contains(&format),
        "has format {}, and this version of vtrain reads format {FORMAT}",
        format.map_or("none".into(), |format| format.to_string())
    );
    let written: Written = serde_json::from_value(json).context("is not what was written")?;
    let same = written.checksums.get(STATE) == Some(&checksum_of(&written.state)?);
    ensure!(same, "is not what was written: its checksum differs");
    let state = serde_json::from_value(written.state).context("is not what was written")?;
    Ok((state, written.checksums))
}

fn bytes_of(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("{}: cannot be read", file.display()))
}

/// The step of a checkpoint, by its folder's name.
fn step_of(path: &Path) -> Option<u64> {
    run_dir::step_of(path.file_name()?.to_str()?)
}

fn checksum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn checksum_of(json: &Value) -> anyhow::Result<String> {
    Ok(checksum(&serde_json::to_vec(json)?))
}

/// Returns JSON after a round trip through text: numbers may differ in their last digit.
fn read_back(json: &Value) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&serde_json::to_vec(json)?)?)
}
