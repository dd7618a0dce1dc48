//! Classifier-free guidance that varies over the steps: `use_dynamic_cfg` of diffusers' CogVideoX pipelines.
//!
//! w(t) = 1 + g (1 - cos(pi ((N - t) / N)^5)) / 2 with the number of steps N and the timestep t.
//!
//! The pipelines pass the timestep (999 ... 0) where the step (0 ... N) seems intended, so the argument of the cosine
//! reaches 1e12 and the scale jumps about within 1..1+g. Reproducing their seeds requires doing the same.

use std::f64::consts::PI;

/// Returns the guidance scale at `timestep` of a run of `num_steps` (in video-to-video: of the remaining steps).
pub fn dynamic_scale(guidance_scale: f64, num_steps: usize, timestep: f64) -> f64 {
    let steps = num_steps as f64;
    let position = (steps - timestep) / steps;
    // `powf`, as in Python: repeated multiplication would round differently, and the cosine amplifies it.
    1.0 + guidance_scale * ((1.0 - (PI * position.powf(5.0)).cos()) / 2.0)
}
