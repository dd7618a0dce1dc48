//! How long and in what portions a run trains.

use candle_core::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::memory;
use super::segments::{Keep, Policy};

/// Long enough for a style from a few dozen clips.
const DEFAULT_STEPS: usize = 1200;

/// `train:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Optimiser steps. null: 1200, or as many as `epochs` take.
    #[schemars(range(min = 1))]
    pub steps: Option<usize>,
    /// Rounds through the data sets, in place of `steps`.
    #[schemars(range(min = 1))]
    pub epochs: Option<usize>,
    /// Clips of one micro-batch.
    pub batch_size: usize,
    /// Micro-batches of one optimiser step, on each process where there are several.
    pub gradient_accumulation_steps: usize,
    /// Keep only part of what the way back needs, and compute the rest again: far less memory, somewhat more time.
    pub gradient_checkpointing: bool,
    /// Which part, with `gradient_checkpointing`. It changes memory and time, and no result.
    pub keep: Policy,
    /// Gradients are scaled down to this global norm. null: they are left as they are.
    pub max_grad_norm: Option<f64>,
    /// Share of captions replaced by the empty one.
    pub caption_dropout: f64,
    /// Share of clips whose first latent frame is given clean, so that the rest is learnt from it: image to video on
    /// checkpoints that start from text or from an image. Those that always start from an image do so without this.
    pub first_frame: f64,
    /// What becomes of a step whose loss or gradients are not finite.
    pub on_nonfinite: OnNonfinite,
    /// With `on_nonfinite: skip`: so many such steps in a row end the run all the same.
    pub max_nonfinite: usize,
    /// A loss of more than so many times the median of the hundred before is told of, with its clips. null: none is.
    pub loss_spike: Option<f64>,
}

/// What becomes of a step whose loss or gradients are not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    /// It is left out, and the run goes on.
    #[default]
    Skip,
    /// It ends the run.
    Stop,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            steps: None,
            epochs: None,
            batch_size: 1,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: true,
            keep: Policy::Auto,
            max_grad_norm: Some(1.0),
            caption_dropout: 0.0,
            first_frame: 0.0,
            on_nonfinite: OnNonfinite::Skip,
            max_nonfinite: 3,
            loss_spike: Some(10.0),
        }
    }
}

impl Config {
    /// Optimiser steps of the whole run, given the micro-batches of an epoch and how many processes share them. The last
    /// step of a number of epochs goes on into the next one where they do not come out even.
    pub fn total_steps(&self, batches_per_epoch: usize, world_size: usize) -> usize {
        match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => batches_per_epoch
                .saturating_mul(epochs)
                .div_ceil(self.gradient_accumulation_steps.max(1).saturating_mul(world_size)),
            (None, None) => DEFAULT_STEPS,
        }
    }

    /// What is kept between the passes on this device, with the memory that is free now.
    pub fn keep(&self, device: &Device) -> Keep {
        match self.gradient_checkpointing {
            true => self.keep.keep(memory::free(device)),
            false => Keep::All,
        }
    }

    /// Values that parse but make no sense, by path below `train`.
    pub fn check(&self) -> Vec<(String, String)> {
        let counts = [
            ("steps", self.steps),
            ("epochs", self.epochs),
            ("batch_size", Some(self.batch_size)),
            ("gradient_accumulation_steps", Some(self.gradient_accumulation_steps)),
            ("max_nonfinite", Some(self.max_nonfinite)),
        ];
        let mut wrong: Vec<_> = counts
            .into_iter()
            .filter(|(_, value)| *value == Some(0))
            .map(|(key, _)| (key.to_string(), "must be at least 1, got 0".to_string()))
            .collect();
        if let (Some(steps), Some(epochs)) = (self.steps, self.epochs) {
            wrong.push((
                "epochs".into(),
                format!("{epochs} epochs and {steps} steps are both given; remove one"),
            ));
        }
        if !self.gradient_checkpointing && !matches!(self.keep, Policy::Auto | Policy::All) {
            wrong.push((
                "keep".into(),
                "says what gradient_checkpointing keeps, which is off; remove one of the two".into(),
            ));
        }
        if let Some(norm) = self.max_grad_norm.filter(|norm| !(*norm > 0.0 && norm.is_finite())) {
            wrong.push((
                "max_grad_norm".into(),
                format!("must be above 0, or null for no clipping, got {norm}"),
            ));
        }
        if let Some(factor) = self.loss_spike.filter(|factor| !(*factor > 1.0 && factor.is_finite())) {
            wrong.push(("loss_spike".into(), format!("must be above 1, or null, got {factor}")));
        }
        let shares = [
            ("caption_dropout", self.caption_dropout),
            ("first_frame", self.first_frame),
        ];
        for (key, share) in shares.into_iter().filter(|(_, share)| !(0.0..=1.0).contains(share)) {
            wrong.push((key.into(), format!("must be between 0 and 1, got {share}")));
        }
        wrong
    }
}
