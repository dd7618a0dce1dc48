//! A run from its first step to its last: step, log, checkpoint, validation, and the final files.

use std::time::Instant;

use anyhow::{Context, bail};

use super::open::Parts;
use super::page::Page;
use super::{finish, resume};
use crate::commands::interrupt::Interrupt;
use crate::commands::progress;
use crate::process::memory;
use crate::train::checkpoint::Snapshot;
use crate::train::metrics::Record;
use crate::train::progress::Progress;
use crate::train::step::{Outcome, Seen};
use crate::video::Frames;

/// Said where the last files cannot be written.
const SAVED: &str = "all steps are done and saved, and the same command writes what is missing";

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
        let mut page = Page::start(&self.parts, self.total_steps);
        let ended = self.go_through(&mut page, interrupt);
        page.finish(matches!(ended, Ok(Ended::Complete)));
        ended
    }

    fn go_through(&mut self, page: &mut Page, interrupt: &Interrupt) -> anyhow::Result<Ended> {
        match self.counts.step {
            0 => {
                page.write();
                self.validate_base(interrupt)?;
                page.write();
            }
            step if step >= self.total_steps => {
                log::info!("all {step} steps are done already; raise train.steps to go on");
                self.make_up(interrupt);
                finish::write(&self.parts, step).context(SAVED)?;
                return Ok(Ended::Complete);
            }
            _ => self.make_up(interrupt),
        }
        self.parts
            .checkpoints
            .foresee(&resume::snapshot(&self.parts, self.counts)?)?;
        let mut progress = Progress::new(self.total_steps);
        let mut line = progress::Line::new();
        while self.counts.step < self.total_steps && !interrupt.asked() {
            let started = Instant::now();
            let lr = self.learning_rate();
            let outcome = self.parts.trainer.step(self.counts.step, lr)?;
            self.account(&outcome)?;
            let record = self.record(&outcome, lr, started);
            self.parts.metrics.record(&record)?;
            line.tell(progress.line(&record), self.counts.step == self.total_steps);

            if self.due(self.parts.config.checkpoint.every) {
                self.save()?;
            }
            if self.due(self.parts.config.validation.every) {
                self.validate(self.counts.step, interrupt);
                page.write();
            }
            page.keep_up();
        }
        self.save()?;
        if self.counts.step < self.total_steps {
            return Ok(Ended::Interrupted(self.counts.step));
        }
        if !self.due(self.parts.config.validation.every) {
            self.validate(self.counts.step, interrupt);
        }
        finish::write(&self.parts, self.total_steps).context(SAVED)?;
        Ok(Ended::Complete)
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
            bail!(
                "step {step}: for the {MOST_SKIPPED}rd time in a row the loss or its gradients are not finite: {what}. \
                 The adapters are as they were before; a lower optimizer.lr, or model.dtype: f32, may help"
            );
        }
        log::warn!("step {step} is left out, since the loss or its gradients are not finite: {what}");
        Ok(())
    }

    fn in_words(&self, seen: &Seen) -> String {
        let clips = seen.samples.iter().map(|sample| self.parts.name(*sample));
        let clips = clips.collect::<Vec<_>>().join(", ");
        format!("loss {} on {clips} at timestep {:?}", seen.loss, seen.timesteps)
    }

    fn record(&self, outcome: &Outcome, lr: f64, started: Instant) -> Record {
        Record {
            step: self.counts.step,
            loss: outcome.loss,
            grad_norm: outcome.grad_norm,
            lr,
            step_seconds: started.elapsed().as_secs_f64(),
            samples_seen: self.counts.samples_seen,
            peak_memory_bytes: memory::resident().map(|memory| memory.peak),
            skipped: outcome.skipped.is_some().then_some(self.counts.skipped),
        }
    }

    /// A checkpoint of the step that was just done, unless there is one. Its log is on the disk before it.
    fn save(&mut self) -> anyhow::Result<()> {
        if self.saved == Some(self.counts.step) {
            return Ok(());
        }
        self.parts.metrics.sync();
        let snapshot: Snapshot = resume::snapshot(&self.parts, self.counts)?;
        let more = match self.parts.config.checkpoint.comfyui {
            true => finish::file_for_comfyui(&self.parts, self.counts.step)?,
            false => None,
        };
        let path = self.parts.checkpoints.save_with(&snapshot, more.as_slice())?;
        log::debug!("checkpoint {}", path.display());
        self.saved = Some(self.counts.step);
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
        self.validate(0, interrupt);
        for (pair, b) in self.parts.pairs.iter().zip(learnt) {
            pair.b.set(&b)?;
        }
        Ok(())
    }

    /// Makes the validation videos that a run which ended right behind its checkpoint still owes of that step.
    fn make_up(&mut self, interrupt: &Interrupt) {
        let step = self.counts.step;
        if step == self.total_steps || self.due(self.parts.config.validation.every) {
            let validator = &self.parts.validator;
            let owed = (0..validator.prompts.len()).filter(|&index| !validator.path(index, step).exists());
            let owed = owed.collect::<Vec<_>>();
            self.show(&owed, step, interrupt);
        }
    }

    /// Makes the validation videos of all prompts.
    fn validate(&mut self, step: u64, interrupt: &Interrupt) {
        let all: Vec<usize> = (0..self.parts.validator.prompts.len()).collect();
        self.show(&all, step, interrupt);
    }

    /// Makes the validation videos of these prompts. What goes wrong is told of, and training goes on.
    fn show(&mut self, prompts: &[usize], step: u64, interrupt: &Interrupt) {
        let parts = &mut self.parts;
        for &index in prompts {
            if interrupt.asked() {
                return;
            }
            let prompt = &parts.validator.prompts[index];
            let bar = progress::bar("validation", prompt.steps);
            let on = progress::on(&bar);
            let shown = parts
                .validator
                .show(index, step, &*parts.trainer.denoiser, &|done, of| {
                    on(done, of);
                    interrupt.check()
                });
            bar.finish_and_clear();
            let shown = shown.and_then(|shown| {
                log::info!("validation video {}", shown.path.display());
                let frames = Frames {
                    data: shown.frame,
                    num_frames: 1,
                    height: shown.height,
                    width: shown.width,
                };
                parts.metrics.show(step, &format!("validation/{}", shown.name), &frames)
            });
            match shown {
                Err(_) if interrupt.asked() => {}
                Err(error) => log::warn!("validation of {:?} failed, training goes on: {error:#}", prompt.prompt),
                Ok(()) => {}
            }
        }
    }
}
