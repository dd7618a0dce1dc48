//! Contents of a checkpoint, as files and read back. `state.json` holds the checksums.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::cache::SampleListing;
use crate::ops::instructions::Instructions;
use crate::optim::adamw;
use crate::run_dir::{self, ADAPTER};
use crate::train::chosen::ChosenSettings;
use crate::train::{config_diff, data_diff};

const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Key of the optimiser's name in the header of its file. Without it the optimiser is AdamW with moments in f32.
const NAME: &str = "optimizer";
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
    /// Settings that the run file left to the run's plan.
    #[serde(default, skip_serializing_if = "ChosenSettings::is_empty")]
    pub chosen: ChosenSettings,
    /// Instructions that products ran on, on a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Instructions>,
}

impl State {
    /// Returns what to say if a run that goes on from this state has other instructions for products.
    pub fn other_instructions(&self, now: &Self) -> Option<String> {
        let (then, now) = (self.instructions.as_ref()?, now.instructions.as_ref()?);
        (then != now).then(|| {
            format!(
                "was computed by another kind of processor, {then}; this one computes {now}: from here on the last digits differ \
                 from those of a run without a break"
            )
        })
    }
}

/// Contents of a checkpoint.
#[derive(Debug)]
pub struct Snapshot {
    /// The adapters as a safetensors file.
    pub adapter: Vec<u8>,
    /// Optimiser whose tensors these are.
    pub optimizer_name: adamw::Name,
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

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    state: Value,
    /// BLAKE3 of the files, and of the state as compact JSON.
    checksums: BTreeMap<String, String>,
}

impl Snapshot {
    /// Returns the files of a checkpoint, by name.
    pub(super) fn files(&self) -> anyhow::Result<[(&'static str, Vec<u8>); 3]> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &self.optimizer {
            tensors.insert(name, tensor.to_device(&Device::Cpu)?);
        }
        let header = HashMap::from([(NAME.to_string(), self.optimizer_name.as_str().to_string())]);
        let optimizer = safetensors::serialize(tensors, Some(header)).context("the optimiser's tensors")?;
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
        let (bytes, optimizer): (_, HashMap<_, _>) = tensors(OPTIMIZER)?;
        let optimizer_name = optimizer_of(&bytes).with_context(|| path.join(OPTIMIZER).display().to_string())?;
        if let Some(named) = step_of(path)
            && named != state.step
        {
            bail!("{}: holds step {}, unlike its name", path.display(), state.step);
        }
        Ok(Self {
            path: path.into(),
            snapshot: Snapshot {
                adapter,
                optimizer_name,
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

/// Returns the optimiser that the header of its file names.
fn optimizer_of(bytes: &[u8]) -> anyhow::Result<adamw::Name> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let Some(name) = header.metadata().as_ref().and_then(|about| about.get(NAME)) else {
        return Ok(adamw::Name::default());
    };
    serde_json::from_value(Value::String(name.clone()))
        .with_context(|| format!("holds the moments of an optimiser that this version of vtrain lacks: {name}"))
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
pub(super) fn step_of(path: &Path) -> Option<u64> {
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
