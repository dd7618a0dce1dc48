//! Classifier-free guidance that varies over the steps: `use_dynamic_cfg` of diffusers' CogVideoX pipelines.
//!
//! w(t) = 1 + g (1 - cos(pi ((N - t) / N)^5)) / 2 with the number of steps N and the timestep t.
//!
//! The pipelines put the timestep (999 ... 0) where the step (0 ... N) seems meant, so the argument of the cosine is as
//! large as 1e12 and the scale jumps about within 1..1+g. Seeds compare only if the same is done here.

use std::f64::consts::PI;

/// The guidance scale at `timestep` of a run of `num_steps` (in video-to-video: of those that are left).
pub fn dynamic_scale(guidance_scale: f64, num_steps: usize, timestep: f64) -> f64 {
    let steps = num_steps as f64;
    let position = (steps - timestep) / steps;
    // `powf`, as Python does: repeated multiplication would round differently, and the cosine shows it.
    1.0 + guidance_scale * ((1.0 - (PI * position.powf(5.0)).cos()) / 2.0)
}
