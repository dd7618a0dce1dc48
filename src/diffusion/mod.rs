//! The mathematics of diffusion: posteriors, timesteps, schedulers. Independent of any model.

pub mod guidance;
pub mod min_snr;
pub mod objective;
pub mod posterior;
pub mod schedulers;
pub mod timesteps;
