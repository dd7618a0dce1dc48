//! Guidance: scales that a request gives, and classifier-free guidance that varies over the steps.
//!
//! Classifier-free guidance (arXiv:2207.12598) runs the network with the prompt and with a negative one. A model that was
//! distilled from it is told the scale instead, as a number that it embeds; what is then left to classifier-free guidance
//! diffusers calls `true_cfg_scale`.
//!
//! `use_dynamic_cfg` of diffusers' CogVideoX pipelines:
//! w(t) = 1 + g (1 - cos(pi ((N - t) / N)^5)) / 2 with the number of steps N and the timestep t.
//!
//! The pipelines pass the timestep (999 ... 0) where the step (0 ... N) seems intended, so the argument of the cosine
//! reaches 1e12 and the scale jumps about within 1..1+g. Reproducing their seeds requires doing the same.

use std::f64::consts::PI;

/// Use of a guidance scale by a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuidanceMode {
    /// `guidance_scale` is that of classifier-free guidance.
    ClassifierFree,
    /// The network embeds `guidance_scale`, and `true_cfg_scale` is that of classifier-free guidance.
    Embedded,
    /// The network was distilled for one scale, so that `guidance_scale` has no effect; `true_cfg_scale` has.
    BuiltIn,
}

/// Scales of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// Use of the scales by the checkpoint.
    pub mode: GuidanceMode,
    /// `guidance_scale`
    pub scale: f64,
    /// `true_cfg_scale`
    pub true_cfg_scale: f64,
}

impl Guidance {
    /// Classifier-free guidance of this scale; none at 1 and below.
    pub fn classifier_free(scale: f64) -> Self {
        Self {
            mode: GuidanceMode::ClassifierFree,
            scale,
            true_cfg_scale: 1.0,
        }
    }

    /// Returns the scale of classifier-free guidance.
    pub fn cfg_scale(&self) -> f64 {
        match self.mode {
            GuidanceMode::ClassifierFree => self.scale,
            GuidanceMode::Embedded | GuidanceMode::BuiltIn => self.true_cfg_scale,
        }
    }

    /// Returns true if the network runs with a negative prompt as well.
    pub fn needs_negative(&self) -> bool {
        self.cfg_scale() > 1.0
    }

    /// Checks that the checkpoint has a use for every scale that is given.
    ///
    /// # Errors
    /// Fails for a `true_cfg_scale` besides a `guidance_scale` that says the same.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.mode != GuidanceMode::ClassifierFree || self.true_cfg_scale == 1.0,
            "true_cfg_scale is {}, which is for checkpoints that embed their guidance scale; this one does not, so give \
             guidance_scale",
            self.true_cfg_scale
        );
        Ok(())
    }
}

/// Returns the guidance scale at `timestep` of a run of `num_steps` (in video-to-video: of the remaining steps).
pub fn dynamic_scale(guidance_scale: f64, num_steps: usize, timestep: f64) -> f64 {
    let steps = num_steps as f64;
    let position = (steps - timestep) / steps;
    // `powf`, as in Python: repeated multiplication would round differently, and the cosine amplifies it.
    1.0 + guidance_scale * ((1.0 - (PI * position.powf(5.0)).cos()) / 2.0)
}
