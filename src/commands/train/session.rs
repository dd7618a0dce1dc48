//! A run from its first step to its last: step, log, checkpoint, validation, and the final files.

use std::time::Instant;

use anyhow::{bail, ensure};
use candle_core::DType;

use super::open::Parts;
use super::page::Page;
use super::{finish, resume};
use crate::commands::interrupt::Interrupt;
use crate::commands::progress;
use crate::dist::ToldByFirst;
use crate::train::checkpoint::Snapshot;
use crate::train::memory;
use crate::train::metrics::Record;
use crate::train::progress::Progress;
use crate::train::step::{Outcome, Seen};
use crate::train::together;
use crate::train::validate::Shown;
use crate::video::Frames;

/// So many steps without a finite loss, one after the other, end a run.
const MOST_SKIPPED: usize = 3;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Complete,
    /// After this step, which is saved.
    Interrupted(u64),
}

/// A run on its way.
pub struct Session<'a> {
    parts: Parts<'a>,
    counts: Counts,
    total_steps: u64,
    /// Steps without a finite loss since the last good one.
    skipped_in_a_row: usize,
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
    /// A session that starts, or goes on, at `counts`.
    pub fn new(parts: Parts<'a>, counts: Counts, total_steps: u64) -> Self {
        Self {
            parts,
            counts,
            total_steps,
            skipped_in_a_row: 0,
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
                self.finish(step)?;
                return Ok(Ended::Complete);
            }
            _ => {}
        }
        let mut progress = Progress::new(self.total_steps);
        let mut line = progress::Line::new();
        while self.counts.step < self.total_steps && !self.parts.ranks.any(interrupt.asked())? {
            let (started, before) = (Instant::now(), self.parts.ranks.traffic());
            let lr = self.learning_rate();
            let outcome = self.parts.trainer.step(self.counts.step, lr)?;
            self.account(&outcome)?;
            if let Some(metrics) = &mut self.parts.metrics {
                let traffic = self.parts.ranks.traffic() - before;
                let record = Record {
                    step: self.counts.step,
                    loss: outcome.loss,
                    grad_norm: outcome.grad_norm,
                    lr,
                    step_seconds: started.elapsed().as_secs_f64(),
                    samples_seen: self.counts.samples_seen,
                    peak_memory_bytes: memory::resident().map(|memory| memory.peak),
                    skipped: outcome.skipped.is_some().then_some(self.counts.skipped),
                    communication: (self.parts.ranks.world_size() > 1).then(|| traffic.into()),
                };
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
            true => finish::write(&self.parts, steps),
            false => Ok(()),
        }
    }

    /// Whether something that comes every so many steps comes now.
    fn due(&self, every: usize) -> bool {
        self.counts.step.is_multiple_of(every as u64)
    }

    fn learning_rate(&self) -> f64 {
        let config = self.parts.config;
        let (step, total) = (self.counts.step as usize, self.total_steps as usize);
        config.lr_scheduler.at(config.optimizer.lr, step, total)
    }

    /// Counts a step. One without a finite loss is said aloud; three in a row end the run.
    fn account(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        self.counts.step += 1;
        self.counts.samples_seen += outcome.samples as u64;
        let Some(seen) = &outcome.skipped else {
            self.skipped_in_a_row = 0;
            if let Some(ema) = &mut self.parts.ema {
                ema.update()?;
            }
            return Ok(());
        };
        self.counts.skipped += 1;
        self.skipped_in_a_row += 1;
        let what = seen
            .iter()
            .map(|seen| self.in_words(seen))
            .collect::<Vec<_>>()
            .join("; ");
        let step = self.counts.step;
        if self.skipped_in_a_row == MOST_SKIPPED {
            ensure!(self.parts.ranks.is_first(), ToldByFirst);
            bail!(
                "step {step}: for the {MOST_SKIPPED}rd time in a row the loss or its gradients are not finite: {what}. \
                 The adapters are as they were before; a lower optimizer.lr, or model.dtype: f32, may help"
            );
        }
        if !self.parts.ranks.is_first() {
            return Ok(());
        }
        log::warn!("step {step} is left out, since the loss or its gradients are not finite: {what}");
        Ok(())
    }

    fn in_words(&self, seen: &Seen) -> String {
        let clips = seen.samples.iter().map(|sample| self.parts.name(*sample));
        let clips = clips.collect::<Vec<_>>().join(", ");
        format!("loss {} on {clips} at timestep {:?}", seen.loss, seen.timesteps)
    }

    /// A checkpoint of the step that was just done, unless there is one. Its log is on the disk before it.
    fn save(&mut self) -> anyhow::Result<()> {
        if self.saved == Some(self.counts.step) {
            return Ok(());
        }
        self.compare_ranks()?;
        let Some(metrics) = &mut self.parts.metrics else {
            self.saved = Some(self.counts.step); // by rank 0
            return Ok(());
        };
        metrics.sync()?;
        let snapshot: Snapshot = resume::snapshot(&self.parts, self.counts)?;
        let path = self.parts.checkpoints.save(&snapshot)?;
        if self.parts.config.checkpoint.comfyui {
            finish::write_for_comfyui(&self.parts, self.counts.step, &path)?;
        }
        log::debug!("checkpoint {}", path.display());
        self.saved = Some(self.counts.step);
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

    /// What the base model makes of the prompts: the adapters are out of the way meanwhile.
    fn validate_base(&mut self, interrupt: &Interrupt) -> anyhow::Result<()> {
        if self.parts.validator.prompts.is_empty() {
            return Ok(());
        }
        let learnt = self.parts.pairs.iter().map(|pair| pair.b.as_tensor().copy());
        let learnt = learnt.collect::<candle_core::Result<Vec<_>>>()?;
        for pair in &self.parts.pairs {
            pair.b.set(&pair.b.zeros_like()?)?;
        }
        self.validate(0, interrupt)?;
        for (pair, b) in self.parts.pairs.iter().zip(learnt) {
            pair.b.set(&b)?;
        }
        Ok(())
    }

    /// Makes the validation videos, each rank one at a time. What goes wrong is told of, and training goes on.
    ///
    /// # Errors
    /// Ranks that did not come.
    fn validate(&mut self, step: u64, interrupt: &Interrupt) -> anyhow::Result<()> {
        let ranks = self.parts.ranks;
        let count = self.parts.validator.prompts.len();
        for first in (0..count).step_by(ranks.world_size()) {
            let index = first + ranks.rank();
            let shown = (index < count && !interrupt.asked()).then(|| self.show(index, step, interrupt));
            for (index, shown) in (first..).zip(together::gather_shown(ranks, shown)?) {
                match shown {
                    Some(shown) if ranks.is_first() => self.tell(index, step, shown, interrupt),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Makes one validation video.
    fn show(&self, index: usize, step: u64, interrupt: &Interrupt) -> anyhow::Result<Shown> {
        let Parts { validator, trainer, .. } = &self.parts;
        let bar = progress::bar("validation", validator.prompts[index].steps);
        let on = progress::on(&bar);
        let shown = validator.show(index, step, &*trainer.denoiser, &|done, of| {
            on(done, of);
            interrupt.check()
        });
        bar.finish_and_clear();
        shown
    }

    /// Tells of a validation video.
    fn tell(&mut self, index: usize, step: u64, shown: anyhow::Result<Shown>, interrupt: &Interrupt) {
        let told = shown.and_then(|shown| {
            log::info!("validation video {}", shown.path.display());
            let frames = Frames {
                data: shown.frame,
                num_frames: 1,
                height: shown.height,
                width: shown.width,
            };
            match &mut self.parts.metrics {
                Some(metrics) => metrics.show(step, &format!("validation/{}", shown.name), &frames),
                None => Ok(()),
            }
        });
        let prompt = &self.parts.validator.prompts[index].prompt;
        match told {
            Err(_) if interrupt.asked() => {}
            Err(error) => log::warn!("validation of {prompt:?} failed, training goes on: {error:#}"),
            Ok(()) => {}
        }
    }
}

/// Writes the page, where it is this rank's to write.
fn write(page: &mut Option<Page>) {
    if let Some(page) = page {
        page.write();
    }
}
