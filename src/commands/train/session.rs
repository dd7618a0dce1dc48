//! A run from its first step to its last: step, log, checkpoint, validation, and the final files.

use std::time::Instant;

use anyhow::{Context, bail, ensure};

use super::open::Parts;
use super::page::Page;
use super::{finish, resume};
use crate::commands::interrupt::Interrupt;
use crate::commands::progress;
use crate::nn::weights;
use crate::train::checkpoint::Snapshot;
use crate::train::memory;
use crate::train::metrics::Record;
use crate::train::origin::Origin;
use crate::train::progress::Progress;
use crate::train::recipe::OnNonfinite;
use crate::train::spikes::Spikes;
use crate::train::step::{Outcome, Seen};
use crate::video::Frames;

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
    parts: Parts<'a>,
    counts: Counts,
    total_steps: u64,
    /// Steps without a finite loss since the last good one.
    skipped_in_a_row: usize,
    spikes: Spikes,
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
        let past = parts.metrics.past();
        Self {
            counts,
            total_steps,
            skipped_in_a_row: past.skipped_in_a_row,
            spikes: Spikes::new(parts.config.train.loss_spike, past.losses.iter().copied()),
            parts,
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
                self.parts.checkpoints.remove_older(step);
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

    /// Counts a step. One that is not finite, and a loss that stands out, are said aloud.
    fn account(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        self.counts.step += 1;
        self.counts.samples_seen += outcome.samples() as u64;
        let median = self.spikes.add(outcome.loss);
        if let Some(origin) = &outcome.fault {
            self.counts.skipped += 1;
            self.skipped_in_a_row += 1;
            return self.judge(origin, &self.on_what(outcome));
        }
        self.skipped_in_a_row = 0;
        if let Some(median) = median {
            log::warn!(
                "step {}: the loss is {:.1} times the median of the steps before: {}",
                self.counts.step,
                outcome.loss / median,
                self.on_what(outcome)
            );
        }
        if let Some(ema) = &mut self.parts.ema {
            ema.update()?;
        }
        Ok(())
    }

    /// Decides what a step without a finite loss or gradient means: by `train.on_nonfinite`, and an end where no later
    /// step can go better.
    fn judge(&self, origin: &Origin, on_what: &str) -> anyhow::Result<()> {
        let (step, recipe) = (self.counts.step, &self.parts.config.train);
        let why = origin.in_words(|place| self.parts.adapter(place));
        if let Some(damage) = self.damage(origin) {
            bail!(
                "step {step}: the loss is not finite: {why}, and the model's files are damaged: {damage}; fetch the file \
                 again. ({on_what})"
            );
        }
        ensure!(
            !origin.stays(),
            "step {step}: the loss is not finite: {why}. A lower optimizer.lr may help; the last checkpoint is from before, \
             and the same command goes on from it. ({on_what})"
        );
        ensure!(
            recipe.on_nonfinite == OnNonfinite::Skip,
            "step {step}: the loss or its gradients are not finite, and train.on_nonfinite is stop: {why}; {on_what}. \
             The adapters are as they were before; a lower optimizer.lr, or model.dtype: f32, may help"
        );
        ensure!(
            self.skipped_in_a_row < recipe.max_nonfinite,
            "step {step}: for the {} time in a row the loss or its gradients are not finite: {why}; {on_what}. \
             The adapters are as they were before; a lower optimizer.lr, or model.dtype: f32, may help",
            ordinal(self.skipped_in_a_row)
        );
        log::warn!("step {step} is left out, since the loss or its gradients are not finite: {why}; {on_what}");
        Ok(())
    }

    /// A weight of the transformer that is not finite as it is stored, where that can be the reason. All are read for it.
    fn damage(&self, origin: &Origin) -> Option<String> {
        if !origin.is_network() || self.skipped_in_a_row > 1 {
            return None; // looked for at the first of them
        }
        log::info!("looking for weights that are not finite");
        let folder = self.parts.family.directory().join("transformer");
        weights::not_finite(&folder).unwrap_or_default() // the step is what is to be told of
    }

    /// What a step trained on, in words.
    fn on_what(&self, outcome: &Outcome) -> String {
        let seen: Vec<String> = outcome.seen.iter().map(|seen| self.in_words(seen)).collect();
        seen.join("; ")
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
            peak_memory_bytes: memory::peak(&self.parts.trainer.source.device),
            skipped: outcome.fault.is_some().then_some(self.counts.skipped),
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

/// `3rd`
fn ordinal(n: usize) -> String {
    let ending = match (n % 10, n % 100) {
        (1, tens) if tens != 11 => "st",
        (2, tens) if tens != 12 => "nd",
        (3, tens) if tens != 13 => "rd",
        _ => "th",
    };
    format!("{n}{ending}")
}
