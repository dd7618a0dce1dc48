//! What is kept so that a run can go on.
//!
//! ```text
//! checkpoints/step-000500/
//!   pytorch_lora_weights.safetensors   the adapters, as diffusers loads them
//!   optimizer.safetensors              the optimiser's tensors
//!   state.json                         where the run stood, its settings, and a checksum of everything
//! ```
//!
//! A checkpoint is written as a whole folder, and older ones go only when it is in place. One that is damaged is told
//! of and passed over.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{data_difference, difference};
use crate::data::cache::Listed;
use crate::disk::space::{self, NoRoom};
use crate::disk::{self, WriteError};

/// `checkpoint:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Steps between checkpoints.
    pub every: usize,
    /// How many of the newest are kept.
    pub limit: usize,
    /// Whether each has the adapter for ComfyUI, too.
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
    /// Values that parse but make no sense, by path below `checkpoint`.
    pub fn check(&self) -> Vec<(String, String)> {
        [("every", self.every), ("limit", self.limit)]
            .into_iter()
            .filter(|(_, value)| *value == 0)
            .map(|(key, _)| (key.to_string(), "must be at least 1, got 0".to_string()))
            .collect()
    }
}

/// The adapters' file, here and in the output directory.
pub const ADAPTER: &str = "pytorch_lora_weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Bytes that the folder itself may take.
const ROOM_FOR_FOLDER: u64 = 16 << 10;
/// Of `state.json`. A version that changes what is written counts this up.
const FORMAT: u32 = 2;
/// The format of checkpoints that do not list their samples.
const WITHOUT_SAMPLES: u32 = 1;

/// The name of the data's fingerprint.
pub const DATA: &str = "data";

/// Where a run stands after a step, and what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps made.
    pub step: u64,
    pub samples_seen: u64,
    /// Steps that moved nothing, since a loss or a gradient was not finite.
    pub skipped: u64,
    pub seed: u64,
    /// Processes that train together.
    pub world_size: usize,
    pub batch_size: usize,
    /// On each of them.
    pub gradient_accumulation_steps: usize,
    /// The settings that change what is learned, as in a run file.
    pub run: Value,
    /// What was trained on what: a fingerprint each of the transformer, the data.
    pub fingerprints: BTreeMap<String, String>,
    /// The samples that the data's fingerprint was taken of; nothing in checkpoints of format 1.
    #[serde(default)]
    pub samples: Vec<Listed>,
}

/// All that a checkpoint keeps.
#[derive(Debug)]
pub struct Snapshot {
    /// The adapters as a safetensors file.
    pub adapter: Vec<u8>,
    /// Such as `<layer>.lora_A.exp_avg`.
    pub optimizer: BTreeMap<String, Tensor>,
    pub state: State,
}

/// A checkpoint read back, its tensors in main memory.
#[derive(Debug)]
pub struct Loaded {
    pub path: PathBuf,
    pub snapshot: Snapshot,
}

/// The checkpoints of a run.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    limit: usize,
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
    /// The checkpoints of the run in `output_dir`. What a killed process left half-written goes.
    pub fn new(output_dir: &Path, config: &Config) -> Self {
        let folder = output_dir.join("checkpoints");
        disk::sweep(&folder);
        Self {
            folder,
            limit: config.limit.max(1),
        }
    }

    /// Writes a checkpoint; then removes those beyond the limit.
    ///
    /// Checkpoints of later steps go, too: the run has left their course (it was resumed before them, or started anew),
    /// and none of them may be taken for its newest.
    ///
    /// # Errors
    /// Too little room, found before anything is written; a file that cannot be written, by path. All checkpoints that a
    /// run could go on from are then as they were.
    pub fn save(&self, snapshot: &Snapshot) -> anyhow::Result<PathBuf> {
        self.save_with(snapshot, &[])
    }

    /// As [`save`](Self::save), with more files in the folder, by name.
    pub fn save_with(&self, snapshot: &Snapshot, more: &[(&str, Vec<u8>)]) -> anyhow::Result<PathBuf> {
        let step = snapshot.state.step;
        let path = self.folder.join(format!("step-{step:06}"));
        let files = snapshot.files()?;
        let sizes = files.iter().chain(more).map(|(_, bytes)| bytes.len() as u64);
        self.ensure_room(space::taken(sizes))
            .with_context(|| self.what_is_lost(step))?;
        disk::patiently(|| {
            disk::write_folder_whole(&path, |unfinished| {
                for (name, bytes) in files.iter().chain(more) {
                    // The user knows the folder by the name that it is going to have.
                    std::fs::write(unfinished.join(name), bytes).map_err(WriteError::at(&path.join(name)))?;
                }
                Ok(())
            })
        })
        .with_context(|| self.what_is_lost(step))?;
        self.rotate(step);
        Ok(path)
    }

    /// Whether the next checkpoint will find room, one like this: asked before a step is spent on it.
    pub fn foresee(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let files = snapshot.files()?;
        let sizes = files.iter().map(|(_, bytes)| bytes.len() as u64);
        Ok(self.ensure_room(space::taken(sizes))?)
    }

    /// Whether a checkpoint of so many bytes can be written. Where the room is short, those that rotation has left behind go
    /// first; the newest `limit` that can be read stay in any case.
    fn ensure_room(&self, bytes: u64) -> Result<(), NoRoom> {
        let needed = bytes.saturating_add(ROOM_FOR_FOLDER);
        let ensure = || space::ensure(&self.folder, needed, || "a checkpoint".into());
        ensure().or_else(|_| {
            self.remove_useless();
            ensure()
        })
    }

    /// Removes the checkpoints that are damaged, and those before the newest `limit` that are not.
    fn remove_useless(&self) {
        let mut good = 0;
        for path in self.list().unwrap_or_default().values().rev() {
            if good < self.limit && Loaded::read(path).is_ok() {
                good += 1;
            } else {
                remove(path);
            }
        }
    }

    /// What a user should know whose run cannot save.
    fn what_is_lost(&self, step: u64) -> String {
        let newest = self.list().unwrap_or_default().into_keys().rfind(|&saved| saved < step);
        match newest {
            Some(newest) => {
                format!("step {step} is not saved, and the run goes on from step {newest} when it is started again")
            }
            None => format!("step {step} is not saved, and there is no checkpoint before it"),
        }
    }

    /// The newest checkpoint that is whole; `None` where there are none at all.
    ///
    /// # Errors
    /// There are checkpoints, but all of them are damaged.
    pub fn newest(&self) -> anyhow::Result<Option<Loaded>> {
        let there = self.list()?;
        for (_, path) in there.iter().rev() {
            match Loaded::read(path) {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(error) => log::warn!("a damaged checkpoint is passed over: {error:#}"),
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

    /// Folders that are named as checkpoints, by step.
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

    /// Leaves the newest `limit` up to this one, and none behind it, which are of another course.
    fn rotate(&self, saved: u64) {
        self.remove_older(saved);
        let there = self.list().unwrap_or_default();
        there
            .range(saved.saturating_add(1)..)
            .for_each(|(_, path)| remove(path));
    }

    /// Removes those that have fallen out of the newest `limit` up to this one: also what a run that was killed before it
    /// came to that has left. A checkpoint too many does no harm: one that cannot be removed is told of and no more.
    pub fn remove_older(&self, saved: u64) {
        let there = self.list().unwrap_or_default();
        let older = there.range(..=saved).rev().skip(self.limit);
        older.for_each(|(_, path)| remove(path));
    }
}

fn remove(path: &Path) {
    if let Err(error) = disk::remove_folder_whole(path) {
        log::warn!("{}: the old checkpoint cannot be removed: {error}", path.display());
    }
}

impl Snapshot {
    /// The files of a checkpoint, by name.
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
    /// When it was written; none where the file system does not tell.
    pub fn written(&self) -> Option<SystemTime> {
        std::fs::metadata(self.path.join(STATE)).ok()?.modified().ok()
    }

    /// Reads a checkpoint folder.
    ///
    /// # Errors
    /// A file that is missing, cannot be read, or is not what was written, by file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        ensure!(path.is_dir(), "{}: is no checkpoint folder", path.display());
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
            bail!(
                "{}: holds step {}, another than its name says",
                path.display(),
                state.step
            );
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

    /// Whether a run with these settings and fingerprints can go on from here.
    ///
    /// # Errors
    /// What differs, a line each.
    pub fn fits(&self, run: &Value, fingerprints: &BTreeMap<String, String>, samples: &[Listed]) -> anyhow::Result<()> {
        let state = &self.snapshot.state;
        let mut different = difference::list(&state.run, &read_back(run)?);
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
                        let lines = data_difference::list(&state.samples, samples);
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
    let json: Value = serde_json::from_slice(bytes).context("is no JSON")?;
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

/// `step-000500` is step 500.
fn step_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_prefix("step-")?;
    digits
        .parse()
        .ok()
        .filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))
}

fn checksum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn checksum_of(json: &Value) -> anyhow::Result<String> {
    Ok(checksum(&serde_json::to_vec(json)?))
}

/// JSON as it is after it was written and read: numbers may differ in their last place.
fn read_back(json: &Value) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&serde_json::to_vec(json)?)?)
}
