//! The mathematics of diffusion: objectives, timesteps, schedulers. Knows no model.

pub mod guidance;
pub mod objective;
pub mod schedulers;
pub mod timesteps;
