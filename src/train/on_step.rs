//! Consequences of a step's loss: a step that is not finite is skipped or ends the run, a loss that stands out is warned of.

use anyhow::{bail, ensure};

use super::adapters::TrainedAdapters;
use super::config::{Config, OnNonfinite};
use super::loss_spikes::LossSpikes;
use super::metrics::LogTail;
use super::micro_batch::MicroBatchStats;
use super::nonfinite::NonfiniteOrigin;
use super::step::Outcome;
use crate::data::cache::Encoded;
use crate::models::Family;
use crate::nn::checkpoint;

/// Judges each step by its loss and those before.
pub struct StepMonitor<'a> {
    config: &'a Config,
    family: &'a dyn Family,
    encoded: &'a Encoded,
    spikes: LossSpikes,
    /// Skipped steps since the last good one.
    consecutive_nonfinite: usize,
}

impl<'a> StepMonitor<'a> {
    /// Continues from what the log tells of the steps before.
    pub fn new(config: &'a Config, family: &'a dyn Family, encoded: &'a Encoded, past: LogTail) -> Self {
        Self {
            config,
            family,
            encoded,
            spikes: LossSpikes::new(config.loss_spike, past.losses),
            consecutive_nonfinite: past.skipped_in_a_row,
        }
    }

    /// Takes in step `step`, counted from 1; returns a warning where something is wrong with it. All ranks return the same.
    ///
    /// # Errors
    /// A step that is not finite, where the run cannot go on or is not to.
    pub fn check(
        &mut self,
        step: u64,
        outcome: &Outcome,
        adapters: &TrainedAdapters,
    ) -> anyhow::Result<Option<String>> {
        let median = self.spikes.add(outcome.loss);
        if let Some(origin) = &outcome.fault {
            self.consecutive_nonfinite += 1;
            let why = origin.in_words(|variable| adapters.names().nth(variable).unwrap_or_default());
            return self.nonfinite(step, origin, &why, &self.describe(outcome)).map(Some);
        }
        self.consecutive_nonfinite = 0;
        Ok(median.map(|median| {
            format!(
                "step {step}: the loss is {:.1} times the median of the steps before: {}",
                outcome.loss / median,
                self.describe(outcome)
            )
        }))
    }

    /// Decides what a step without a finite loss or gradient means: by `train.on_nonfinite`, and an end where no later
    /// step can go better. Returns a warning where the run goes on.
    fn nonfinite(&self, step: u64, origin: &NonfiniteOrigin, why: &str, trained_on: &str) -> anyhow::Result<String> {
        if let Some(damage) = self.damage(origin) {
            bail!(
                "step {step}: the loss is not finite: {why}, and the model's files are damaged: {damage}; fetch the file \
                 again. ({trained_on})"
            );
        }
        ensure!(
            !origin.stays(),
            "step {step}: the loss is not finite: {why}. A lower optimizer.lr may help; the last checkpoint is from before, \
             and the same command continues from it. ({trained_on})"
        );
        ensure!(
            self.config.on_nonfinite == OnNonfinite::Skip,
            "step {step}: the loss or its gradients are not finite, and train.on_nonfinite is stop: {why}; {trained_on}. \
             The adapters are as they were before; a lower optimizer.lr, or model.dtype: f32, may help"
        );
        ensure!(
            self.consecutive_nonfinite < self.config.max_consecutive_nonfinite,
            "step {step}: for the {} time in a row the loss or its gradients are not finite: {why}; {trained_on}. \
             The adapters are as they were before; a lower optimizer.lr, or model.dtype: f32, may help",
            ordinal(self.consecutive_nonfinite)
        );
        Ok(format!(
            "step {step} is left out, since the loss or its gradients are not finite: {why}; {trained_on}"
        ))
    }

    /// A stored weight of the transformer that is not finite, where that can be the reason. All are read for it.
    fn damage(&self, origin: &NonfiniteOrigin) -> Option<String> {
        if !origin.is_network() || self.consecutive_nonfinite > 1 {
            return None; // looked for at the first of them
        }
        log::info!("looking for weights that are not finite");
        let folder = self.family.spec().directory.part("transformer");
        checkpoint::not_finite(&folder).unwrap_or_default() // the step is what is to be told of
    }

    /// Loss, clips and timesteps of each micro-batch of a step.
    fn describe(&self, outcome: &Outcome) -> String {
        let seen: Vec<String> = outcome.seen.iter().map(|seen| self.describe_one(seen)).collect();
        seen.join("; ")
    }

    fn describe_one(&self, seen: &MicroBatchStats) -> String {
        let clips = seen.samples.iter().map(|sample| {
            let sample = self.encoded.samples.get(*sample);
            sample.map_or_else(String::new, |sample| sample.video.display().to_string())
        });
        let clips = clips.collect::<Vec<_>>().join(", ");
        format!("loss {} on {clips} at timestep {:?}", seen.loss, seen.timesteps)
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
