//! The mathematics of diffusion: objectives, timesteps, schedulers. Knows no model.

pub mod timesteps;
