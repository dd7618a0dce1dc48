//! A run from its first step to its last: step, log, checkpoint, validation, and the final files.

use std::time::Instant;

use anyhow::Context;
use candle_core::DType;

use super::open::Parts;
use super::page::Page;
use super::{finish, resume};
use crate::commands::interrupt::Interrupt;
use crate::commands::progress;
use crate::dist::Traffic;
use crate::train::checkpoint::Snapshot;
use crate::train::memory;
use crate::train::metrics::{Past, Record};
use crate::train::progress::Progress;
use crate::train::spikes::Spikes;
use crate::train::step::Outcome;

/// Said where the last files cannot be written.
const SAVED: &str = "all steps are done and saved, and the same command writes what is missing";

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Complete,
    /// After this step, which is saved.
    Interrupted(u64),
}

/// A run on its way.
pub struct Session<'a> {
    pub(super) parts: Parts<'a>,
    pub(super) counts: Counts,
    pub(super) total_steps: u64,
    /// Steps without a finite loss since the last good one.
    pub(super) skipped_in_a_row: usize,
    pub(super) spikes: Spikes,
    /// The step of the newest checkpoint.
    saved: Option<u64>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps done.
    pub step: u64,
    pub samples_seen: u64,
    /// Steps left out for want of a finite loss.
    pub skipped: u64,
}

impl<'a> Session<'a> {
    /// A session that starts, or goes on, at `counts`, behind what the log tells of the past.
    pub fn new(parts: Parts<'a>, counts: Counts, total_steps: u64, past: Past) -> Self {
        Self {
            counts,
            total_steps,
            skipped_in_a_row: past.skipped_in_a_row,
            spikes: Spikes::new(parts.config.train.loss_spike, past.losses),
            parts,
            saved: (counts.step > 0).then_some(counts.step),
        }
    }

    /// Goes through all steps that are left, and writes the final files. However it ends, the page tells of it.
    pub fn run(mut self, interrupt: &Interrupt) -> anyhow::Result<Ended> {
        let first = self.parts.ranks.is_first();
        let mut page = first.then(|| Page::start(&self.parts, self.total_steps));
        let ended = self.go_through(&mut page, interrupt);
        if let Some(page) = page {
            page.finish(matches!(ended, Ok(Ended::Complete)));
        }
        ended
    }

    fn go_through(&mut self, page: &mut Option<Page>, interrupt: &Interrupt) -> anyhow::Result<Ended> {
        match self.counts.step {
            0 => {
                write(page);
                self.validate_base(interrupt)?;
                write(page);
            }
            step if step >= self.total_steps => {
                log::info!("all {step} steps are done already; raise train.steps to go on");
                self.make_up(interrupt)?;
                if self.parts.ranks.is_first() {
                    self.parts.checkpoints.remove_older(step);
                }
                self.finish(step)?;
                return Ok(Ended::Complete);
            }
            _ => self.make_up(interrupt)?,
        }
        self.foresee()?;
        let mut progress = Progress::new(self.total_steps);
        let mut line = progress::Line::new();
        while self.counts.step < self.total_steps && !self.parts.ranks.any(interrupt.asked())? {
            let (started, before) = (Instant::now(), self.parts.ranks.traffic());
            let lr = self.learning_rate();
            let outcome = self.parts.trainer.step(self.counts.step, lr)?;
            self.account(&outcome)?;
            let record = self.record(&outcome, lr, started, before);
            if let Some(metrics) = &mut self.parts.metrics {
                metrics.record(&record)?;
                line.tell(progress.line(&record), self.counts.step == self.total_steps);
            }

            if self.due(self.parts.config.checkpoint.every) {
                self.save()?;
            }
            if self.due(self.parts.config.validation.every) {
                self.validate(self.counts.step, interrupt)?;
                write(page);
            }
            if let Some(page) = page {
                page.keep_up();
            }
        }
        self.save()?;
        if self.counts.step < self.total_steps {
            return Ok(Ended::Interrupted(self.counts.step));
        }
        if !self.due(self.parts.config.validation.every) {
            self.validate(self.counts.step, interrupt)?;
        }
        self.finish(self.total_steps)?;
        Ok(Ended::Complete)
    }

    /// Writes what a finished run leaves.
    fn finish(&self, steps: u64) -> anyhow::Result<()> {
        match self.parts.ranks.is_first() {
            true => finish::write(&self.parts, steps).context(SAVED),
            false => Ok(()),
        }
    }

    /// Whether something that comes every so many steps comes now.
    pub(super) fn due(&self, every: usize) -> bool {
        self.counts.step.is_multiple_of(every as u64)
    }

    fn learning_rate(&self) -> f64 {
        let config = self.parts.config;
        let (step, total) = (self.counts.step as usize, self.total_steps as usize);
        config.lr_scheduler.at(config.optimizer.lr, step, total)
    }

    /// The step that was just done, for the log; `before` is what was sent before it.
    fn record(&self, outcome: &Outcome, lr: f64, started: Instant, before: Traffic) -> Record {
        let ranks = self.parts.ranks;
        Record {
            step: self.counts.step,
            loss: outcome.loss,
            grad_norm: outcome.grad_norm,
            lr,
            step_seconds: started.elapsed().as_secs_f64(),
            samples_seen: self.counts.samples_seen,
            peak_memory_bytes: memory::peak(&self.parts.trainer.source.device),
            skipped: outcome.fault.is_some().then_some(self.counts.skipped),
            communication: (ranks.world_size() > 1).then(|| (ranks.traffic() - before).into()),
        }
    }

    /// Whether there will be room for the next checkpoint.
    fn foresee(&self) -> anyhow::Result<()> {
        match self.parts.ranks.is_first() {
            true => self
                .parts
                .checkpoints
                .foresee(&resume::snapshot(&self.parts, self.counts)?),
            false => Ok(()),
        }
    }

    /// A checkpoint of the step that was just done, unless there is one. Its log is on the disk before it.
    fn save(&mut self) -> anyhow::Result<()> {
        if self.saved == Some(self.counts.step) {
            return Ok(());
        }
        self.compare_ranks()?;
        self.saved = Some(self.counts.step);
        let Some(metrics) = &mut self.parts.metrics else {
            return Ok(()); // rank 0 saves
        };
        metrics.sync();
        let snapshot: Snapshot = resume::snapshot(&self.parts, self.counts)?;
        let more = match self.parts.config.checkpoint.comfyui {
            true => finish::file_for_comfyui(&self.parts, self.counts.step)?,
            false => None,
        };
        let path = self.parts.checkpoints.save_with(&snapshot, more.as_slice())?;
        log::debug!("checkpoint {}", path.display());
        Ok(())
    }

    /// Every rank moves its own adapters by the same gradients. Should they part all the same, as processors of several
    /// kinds may round, that is told.
    fn compare_ranks(&self) -> anyhow::Result<()> {
        let ranks = self.parts.ranks;
        if ranks.world_size() == 1 {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        for var in &self.parts.trainer.vars {
            let numbers = var.as_tensor().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            for number in numbers {
                hasher.update(&number.to_le_bytes());
            }
        }
        let each = ranks.all_gather(hasher.finalize().as_bytes())?;
        let others: Vec<usize> = (0..each.len()).filter(|&rank| each[rank] != each[0]).collect();
        if ranks.is_first() && !others.is_empty() {
            let step = self.counts.step;
            log::warn!("step {step}: the adapters of ranks {others:?} are no longer those of rank 0, which are saved");
        }
        Ok(())
    }
}

/// Writes the page, where it is this rank's to write.
fn write(page: &mut Option<Page>) {
    if let Some(page) = page {
        page.write();
    }
}
