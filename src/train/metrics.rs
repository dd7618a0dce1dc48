//! Metrics of a run: `metrics.jsonl`, one object per step, and the same for TensorBoard.
//!
//! Two runs with the same settings write the same lines except for `step_seconds` and `peak_memory_bytes`: keys have a
//! fixed order, and numbers are printed so that they read back exactly.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::loss_spikes;
use super::tensorboard::Events;
use crate::disk::{self, Journal};
use crate::distributed::Traffic;
use crate::run_dir::RunDir;
use crate::video::Frames;

/// `tracking:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Write TensorBoard events next to `metrics.jsonl`.
    pub tensorboard: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { tensorboard: true }
    }
}

/// Metrics of one step. Non-finite numbers are written as null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// Step, from 1.
    pub step: u64,
    /// Mean over the step's micro-batches and ranks.
    pub loss: f64,
    /// Norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Duration of the step.
    pub step_seconds: f64,
    /// Samples since the run began, including this step's.
    pub samples_seen: u64,
    /// Peak memory; null if the system does not report it.
    pub peak_memory_bytes: Option<u64>,
    /// Steps so far without an update, because a loss or a gradient was not finite; set on those steps only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<u64>,
    /// Communication with other ranks, if there are any.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub communication: Option<Communication>,
}

/// Communication of rank 0 with the others in one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Communication {
    /// Bytes sent.
    pub communication_bytes: u64,
    /// Time from the arrival of the last rank until the transfer was complete.
    pub communication_seconds: f64,
    /// Time until the slowest rank arrived.
    pub waiting_seconds: f64,
}

impl From<Traffic> for Communication {
    fn from(traffic: Traffic) -> Self {
        Self {
            communication_bytes: traffic.bytes,
            communication_seconds: traffic.moving.as_secs_f64(),
            waiting_seconds: traffic.waiting.as_secs_f64(),
        }
    }
}

/// Log of the run, open for appending.
#[derive(Debug)]
pub struct Metrics {
    lines: Journal,
    events: Option<Events>,
    /// Samples at the last line; unknown after a resume without one.
    samples_seen: Option<u64>,
    past: LogTail,
}

/// Contents of the log before a resume that training needs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct LogTail {
    /// Finite losses of the last steps, in their order.
    pub losses: Vec<f64>,
    /// Steps at its end without an update.
    pub skipped_in_a_row: usize,
}

impl Metrics {
    /// Opens the log of a run, cut back to the step that the run resumes at; without one, both logs
    /// start anew. No step is told twice, and none is missing that was told before.
    ///
    /// # Errors
    /// A log that cannot be read or written, by file.
    pub fn open(dir: &RunDir, config: &Config, resumed_at: Option<u64>) -> anyhow::Result<Self> {
        let path = dir.metrics();
        let (samples_seen, past) = cut_back(&path, resumed_at.unwrap_or(0))?;
        let lines = Journal::open(&path)?;
        // Also without `tensorboard`, so that what is there agrees with the log.
        let folder = dir.tensorboard();
        super::tensorboard::cut_back(&folder, resumed_at)?;
        let events = config.tensorboard.then(|| Events::create(&folder)).transpose()?;
        Ok(Self {
            lines,
            events,
            samples_seen,
            past,
        })
    }

    /// Returns the contents of the log when it was opened.
    pub fn past(&self) -> &LogTail {
        &self.past
    }

    /// Logs one step. Failed writes are queued: a run does not end because of its log.
    pub fn record(&mut self, record: &Record) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.lines.add(line);
        let before = self.samples_seen.replace(record.samples_seen);
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        let mut scalars = vec![
            ("loss", record.loss),
            ("lr", record.lr),
            ("grad_norm", record.grad_norm),
            ("step_seconds", record.step_seconds),
        ];
        if let Some(before) = before
            && record.step_seconds > 0.0
        {
            let samples = record.samples_seen.saturating_sub(before) as f64;
            scalars.push(("samples_per_second", samples / record.step_seconds));
        }
        if let Some(communication) = &record.communication {
            scalars.push(("communication_seconds", communication.communication_seconds));
            scalars.push(("waiting_seconds", communication.waiting_seconds));
        }
        events.scalars(record.step, &scalars)
    }

    /// Writes a validation clip under `tag`, if TensorBoard is used.
    pub fn show(&mut self, step: u64, tag: &str, frames: &Frames) -> anyhow::Result<()> {
        self.events
            .as_mut()
            .map_or(Ok(()), |events| events.frames(step, tag, frames))
    }

    /// Syncs everything logged: called before a checkpoint of the same step, which should not outlive its log. On
    /// failure a message is logged, and the more valuable checkpoint is written all the same.
    pub fn sync(&mut self) {
        self.lines.sync();
        if let Some(events) = &mut self.events {
            events.sync();
        }
    }
}

/// A line, with what truncation needs.
#[derive(Deserialize)]
struct LoggedStep {
    step: u64,
    loss: Option<f64>,
    samples_seen: Option<u64>,
    skipped: Option<u64>,
}

/// Removes lines that are past `step`, torn, or repeated; returns the samples seen by the last remaining one, and what
/// else is needed of it.
fn cut_back(path: &Path, step: u64) -> anyhow::Result<(Option<u64>, LogTail)> {
    let old = match std::fs::read(path) {
        Ok(old) => old,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot be read", path.display())),
    };
    let mut kept = Vec::with_capacity(old.len());
    let (mut last, mut seen, mut torn) = (0, Some(0), 0);
    let mut past = LogTail::default();
    for line in old.split_inclusive(|byte| *byte == b'\n') {
        let whole = line.ends_with(b"\n");
        match serde_json::from_slice::<LoggedStep>(line) {
            Ok(told) if whole && (last + 1..=step).contains(&told.step) => {
                kept.extend_from_slice(line);
                (last, seen) = (told.step, told.samples_seen);
                past.losses.extend(told.loss);
                past.skipped_in_a_row = told.skipped.map_or(0, |_| past.skipped_in_a_row + 1);
            }
            Ok(_) if whole => {}
            _ => torn += usize::from(step > 0),
        }
    }
    if kept != old {
        disk::write_whole(path, &kept)?;
    }
    let shown = path.display();
    if torn > 0 {
        log::debug!("{shown}: {torn} torn lines were removed");
    }
    if last < step {
        log::warn!("{shown}: ends at step {last}, before the checkpoint of step {step}; the steps between are missing");
        seen = None;
    }
    past.losses
        .drain(..past.losses.len().saturating_sub(loss_spikes::WINDOW));
    Ok((seen, past))
}
