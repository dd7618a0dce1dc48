//! The training loop: stop, step, log, save, sample.

use std::time::Instant;

use anyhow::Context;

use super::adapters::TrainedAdapters;
use super::checkpoint::{Checkpoints, State};
use super::collectives;
use super::finish::FinalFiles;
use super::memory;
use super::metrics::{Metrics, Record};
use super::observer::Observer;
use super::on_step::StepMonitor;
use super::resume;
use super::step::{Outcome, Trainer};
use super::validation::{Round, Validation};
use crate::distributed::{Communicator, ReportedByRankZero, Traffic};
use crate::optim::lr;

/// Said where the last files cannot be written.
const SAVED: &str = "all steps are done and saved, and the same command writes what is missing";

/// A run: its model, what it has learned, and the files that it writes.
pub struct Run<'a> {
    /// Where it stands, and what it is: as checkpoints keep it.
    pub state: State,
    /// How far it goes, and at which rates.
    pub schedule: Schedule<'a>,
    /// Processes that train together.
    pub ranks: &'a dyn Communicator,
    /// Carries out a step.
    pub trainer: Trainer<'a>,
    /// Variables that the steps move.
    pub adapters: TrainedAdapters<'a>,
    /// Judges each step.
    pub monitor: StepMonitor<'a>,
    /// The log, on rank 0.
    pub metrics: Option<Metrics>,
    /// Checkpoints, which rank 0 writes.
    pub checkpoints: Checkpoints,
    /// Validation videos.
    pub validation: Validation<'a>,
    /// Files of the finished run.
    pub final_files: FinalFiles<'a>,
}

/// Steps of a run, and their learning rates.
pub struct Schedule<'a> {
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Highest learning rate.
    pub lr: f64,
    /// Its course over the run.
    pub lr_scheduler: &'a lr::Config,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done, and the final files are there.
    Complete,
    /// After this step, which is saved.
    Interrupted(u64),
}

impl Run<'_> {
    /// Goes through all steps that are left, and writes the final files.
    ///
    /// # Errors
    /// A step that cannot be carried out, or after which the run cannot go on; files that cannot be written.
    pub fn run(&mut self, observer: &mut dyn Observer) -> anyhow::Result<Ended> {
        let total_steps = self.schedule.total_steps;
        let mut saved = (self.state.step > 0).then_some(self.state.step);
        self.start(observer)?;
        while self.state.step < total_steps {
            // Stop, where this or another rank is asked to.
            if self.ranks.any(observer.asks_to_stop())? {
                if saved != Some(self.state.step) {
                    self.save()?;
                }
                return Ok(Ended::Interrupted(self.state.step));
            }

            // Step: gradients of some micro-batches, and one move of the adapters unless these are not finite.
            let (started, traffic) = (Instant::now(), self.ranks.traffic());
            let lr = self.schedule.learning_rate(self.state.step);
            let outcome = self.trainer.step(self.state.step, lr)?;
            self.state.step += 1;
            self.state.samples_seen += outcome.samples() as u64;
            self.state.skipped += u64::from(outcome.fault.is_some());
            self.check(&outcome)?;
            if let (Some(ema), None) = (&mut self.adapters.ema, &outcome.fault) {
                ema.update()?;
            }

            // Log.
            let record = self.record(&outcome, lr, started, traffic);
            if let Some(metrics) = &mut self.metrics {
                metrics.record(&record)?;
                observer.logged(&record);
            }

            // Save a checkpoint.
            let (step, last) = (self.state.step, self.state.step == total_steps);
            if last || is_due(step, self.checkpoints.config.every) {
                self.save()?;
                saved = Some(step);
            }

            // Sample validation videos.
            if last || is_due(step, self.validation.every) {
                self.sample(&self.validation.all(), observer)?;
                observer.refresh();
            }
        }
        if self.ranks.is_first() {
            let (files, validator) = (&self.final_files, &self.validation.validator);
            files.write(self.state.step, &self.adapters, validator).context(SAVED)?;
        }
        Ok(Ended::Complete)
    }

    /// Samples the base model's videos, or those that an earlier process still owes, and looks for room for the next checkpoint.
    fn start(&mut self, observer: &mut dyn Observer) -> anyhow::Result<()> {
        let (step, total_steps) = (self.state.step, self.schedule.total_steps);
        if step == 0 {
            observer.refresh();
            if !self.validation.validator.prompts.is_empty() {
                let learned = self.adapters.disable()?;
                self.sample(&self.validation.all(), observer)?;
                self.adapters.enable(learned)?;
            }
            observer.refresh();
        }
        if step >= total_steps {
            log::info!("all {step} steps are done already; raise train.steps to go on");
        }
        if step > 0 && (step == total_steps || is_due(step, self.validation.every)) {
            self.sample(&self.validation.missing(step)?, observer)?;
        }
        match self.ranks.is_first() {
            true if step >= total_steps => self.checkpoints.remove_older(step),
            true => {
                let snapshot = resume::snapshot(&self.state, &self.adapters, &self.trainer.optimizer)?;
                self.checkpoints.check_space(&snapshot)?;
            }
            false => {}
        }
        Ok(())
    }

    /// Judges the step that was just done. Rank 0 warns and fails for all.
    fn check(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        let checked = self.monitor.check(self.state.step, outcome, &self.adapters);
        match (checked, self.ranks.is_first()) {
            (Ok(warning), true) => warning.iter().for_each(|warning| log::warn!("{warning}")),
            (Ok(_), false) => {}
            (Err(error), true) => return Err(error),
            (Err(_), false) => return Err(ReportedByRankZero.into()),
        }
        Ok(())
    }

    /// The step that was just done; `before` is what had been sent when it started.
    fn record(&self, outcome: &Outcome, lr: f64, started: Instant, before: Traffic) -> Record {
        Record {
            step: self.state.step,
            loss: outcome.loss,
            grad_norm: outcome.grad_norm,
            lr,
            step_seconds: started.elapsed().as_secs_f64(),
            samples_seen: self.state.samples_seen,
            peak_memory_bytes: memory::peak(&self.trainer.source.device),
            skipped: outcome.fault.is_some().then_some(self.state.skipped),
            communication: (self.ranks.world_size() > 1).then(|| (self.ranks.traffic() - before).into()),
        }
    }

    /// Writes a checkpoint of the step that was just done. Its log is on the disk before it.
    fn save(&mut self) -> anyhow::Result<()> {
        let step = self.state.step;
        // Every rank moves its own adapters by the same gradients; processors of several kinds may still round differently.
        let diverged = collectives::diverged(self.ranks, &self.trainer.vars)?;
        if self.ranks.is_first() && !diverged.is_empty() {
            log::warn!(
                "step {step}: the adapters of ranks {diverged:?} are no longer those of rank 0, which are saved"
            );
        }
        let Some(metrics) = &mut self.metrics else {
            return Ok(()); // rank 0 saves
        };
        metrics.sync();
        let snapshot = resume::snapshot(&self.state, &self.adapters, &self.trainer.optimizer)?;
        let more = match self.checkpoints.config.comfyui {
            true => self
                .final_files
                .comfyui(step, &self.adapters, &self.validation.validator)?,
            false => None,
        };
        let path = self.checkpoints.save_with(&snapshot, more.as_slice())?;
        log::debug!("checkpoint {}", path.display());
        Ok(())
    }

    /// Samples the validation videos of these prompts after the step that was just done.
    fn sample(&mut self, prompts: &[usize], observer: &dyn Observer) -> anyhow::Result<()> {
        let round = Round {
            step: self.state.step,
            denoiser: &*self.trainer.denoiser,
            observer,
            metrics: self.metrics.as_mut(),
        };
        self.validation.render(prompts, round)
    }
}

impl Schedule<'_> {
    /// The learning rate of a step, counted from 0.
    fn learning_rate(&self, step: u64) -> f64 {
        self.lr_scheduler.at(self.lr, step as usize, self.total_steps as usize)
    }
}

/// Returns true if something that comes every so many steps comes after this one.
fn is_due(step: u64, every: usize) -> bool {
    step.is_multiple_of(every as u64)
}
