//! What becomes of a run behind a step that was not finite, or whose loss stands out.

use anyhow::{bail, ensure};

use super::session::Session;
use crate::dist::ToldByFirst;
use crate::nn::weights;
use crate::train::origin::Origin;
use crate::train::recipe::OnNonfinite;
use crate::train::step::{Outcome, Seen};

impl Session<'_> {
    /// Counts a step. One that is not finite, and a loss that stands out, are said aloud, by rank 0.
    ///
    /// # Errors
    /// A run that cannot go on: the same on all ranks.
    pub(super) fn account(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        let first = self.parts.ranks.is_first();
        self.counts.step += 1;
        self.counts.samples_seen += outcome.samples() as u64;
        let median = self.spikes.add(outcome.loss);
        if let Some(origin) = &outcome.fault {
            self.counts.skipped += 1;
            self.skipped_in_a_row += 1;
            let told = self.judge(origin, &self.on_what(outcome));
            return match (told, first) {
                (Ok(warning), true) => {
                    log::warn!("{warning}");
                    Ok(())
                }
                (Ok(_), false) => Ok(()),
                (Err(error), true) => Err(error),
                (Err(_), false) => Err(ToldByFirst.into()),
            };
        }
        self.skipped_in_a_row = 0;
        if let Some(median) = median
            && first
        {
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
    /// step can go better. Returns what is to be said where the run goes on.
    fn judge(&self, origin: &Origin, on_what: &str) -> anyhow::Result<String> {
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
        Ok(format!(
            "step {step} is left out, since the loss or its gradients are not finite: {why}; {on_what}"
        ))
    }

    /// A weight of the transformer that is not finite as it is stored, where that can be the reason. All are read for it.
    fn damage(&self, origin: &Origin) -> Option<String> {
        if !origin.is_network() || self.skipped_in_a_row > 1 {
            return None; // looked for at the first of them
        }
        log::info!("looking for weights that are not finite");
        let folder = self.parts.family.directory().part("transformer");
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
