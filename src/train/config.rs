//! Length of a run, and the sizes of its batches.

use std::path::Path;

use candle_core::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::memory;
use super::offload::OffloadTo;
use super::segments::{ActivationPolicy, FreeMemory, SavedActivations};

use crate::problems::Problems;

/// Default steps, enough for a style from a few dozen clips.
const DEFAULT_STEPS: usize = 1200;

/// `train:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Optimiser steps. null: 1200, or as many as `epochs` take.
    #[schemars(range(min = 1))]
    pub steps: Option<usize>,
    /// Passes through the data sets, in place of `steps`.
    #[schemars(range(min = 1))]
    pub epochs: Option<usize>,
    /// Clips per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimiser step, on each process if there are several.
    pub gradient_accumulation_steps: usize,
    /// Keep only part of what the backward pass needs, and recompute the rest: far less memory, somewhat more time.
    pub gradient_checkpointing: bool,
    /// Part that is kept, with `gradient_checkpointing`. It affects memory and time, but no result.
    pub activation_policy: ActivationPolicy,
    /// Global norm that gradients are scaled down to. null: no clipping.
    pub max_grad_norm: Option<f64>,
    /// Share of captions replaced by the empty one.
    pub caption_dropout: f64,
    /// Share of clips whose first latent frame is given clean, so that the rest is learnt from it: image to video on
    /// checkpoints that start from text or from an image. Those that always start from an image do so without this.
    pub first_frame_conditioning_p: f64,
    /// Guidance scale that models are told in training that embed one; 1 is that of the clips as they are.
    pub guidance_embedding: f64,
    /// Treatment of a step whose loss or gradients are not finite.
    pub on_nonfinite: OnNonfinite,
    /// With `on_nonfinite: skip`: number of such steps in a row that ends the run all the same.
    pub max_consecutive_nonfinite: usize,
    /// Fate of a run that takes more memory than is free, by its plan (`vtrain plan`), before anything is loaded.
    pub on_too_little_memory: OnTooLittleMemory,
    /// Factor over the median of the last hundred losses from which a loss is logged, with its clips. null: never.
    pub loss_spike: Option<f64>,
}

/// Treatment of a run that is planned to take more memory than is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTooLittleMemory {
    /// It does not start, if no error of the plan can explain it.
    #[default]
    Stop,
    /// It starts all the same.
    Warn,
}

/// Treatment of a step whose loss or gradients are not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    /// The step is skipped, and the run continues.
    #[default]
    Skip,
    /// The run ends.
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
            activation_policy: ActivationPolicy::Auto,
            max_grad_norm: Some(1.0),
            caption_dropout: 0.0,
            first_frame_conditioning_p: 0.0,
            guidance_embedding: 1.0,
            on_nonfinite: OnNonfinite::Skip,
            max_consecutive_nonfinite: 3,
            on_too_little_memory: OnTooLittleMemory::Stop,
            loss_spike: Some(10.0),
        }
    }
}

impl Config {
    /// Returns the optimiser steps of the whole run, given the micro-batches of an epoch and the number of processes
    /// that share them. The last step may extend into the next epoch.
    pub fn total_steps(&self, batches_per_epoch: usize, world_size: usize) -> usize {
        match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => batches_per_epoch
                .saturating_mul(epochs)
                .div_ceil(self.gradient_accumulation_steps.max(1).saturating_mul(world_size)),
            (None, None) => DEFAULT_STEPS,
        }
    }

    /// Returns what is kept between the passes on this device, given its free memory. On the CPU, what is offloaded goes to a
    /// file in the run's folder.
    pub fn saved_activations(&self, device: &Device, output_dir: &Path) -> SavedActivations {
        match (self.gradient_checkpointing, self.activation_policy) {
            (false, _) => SavedActivations::All,
            (true, ActivationPolicy::Offloaded) if device.is_cpu() => {
                SavedActivations::Offloaded(OffloadTo::FileIn(output_dir.into()))
            }
            (true, policy) => policy.saved_activations(FreeMemory::of(device, memory::free(device))),
        }
    }

    /// Checks for values that parse but make no sense, by path below `train`.
    pub fn check(&self, problems: &mut Problems) {
        let counts = [
            ("steps", self.steps),
            ("epochs", self.epochs),
            ("batch_size", Some(self.batch_size)),
            ("gradient_accumulation_steps", Some(self.gradient_accumulation_steps)),
            ("max_consecutive_nonfinite", Some(self.max_consecutive_nonfinite)),
        ];
        for (key, count) in counts {
            problems.at_least_one(key, count.unwrap_or(1));
        }
        if let (Some(steps), Some(epochs)) = (self.steps, self.epochs) {
            let message = format!("{epochs} epochs and {steps} steps are both given; remove one");
            problems.push("epochs", message);
        }
        if !self.gradient_checkpointing
            && !matches!(self.activation_policy, ActivationPolicy::Auto | ActivationPolicy::All)
        {
            let message = "needs gradient_checkpointing, which is off; remove one of the two";
            problems.push("activation_policy", message);
        }
        if let Some(norm) = self.max_grad_norm.filter(|norm| !(*norm > 0.0 && norm.is_finite())) {
            let message = format!("must be above 0, or null for no clipping, got {norm}");
            problems.push("max_grad_norm", message);
        }
        if let Some(factor) = self.loss_spike.filter(|factor| !(*factor > 1.0 && factor.is_finite())) {
            problems.push("loss_spike", format!("must be above 1, or null, got {factor}"));
        }
        if !self.guidance_embedding.is_finite() {
            let message = format!("must be a number, got {}", self.guidance_embedding);
            problems.push("guidance_embedding", message);
        }
        let shares = [
            ("caption_dropout", self.caption_dropout),
            ("first_frame_conditioning_p", self.first_frame_conditioning_p),
        ];
        for (key, share) in shares.into_iter().filter(|(_, share)| !(0.0..=1.0).contains(share)) {
            problems.push(key, format!("must be between 0 and 1, got {share}"));
        }
    }
}
