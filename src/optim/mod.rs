//! What moves the adapters. Knows variables and gradients only.

pub mod adamw;
pub mod clip;
#[cfg(feature = "cuda")]
mod cuda;
pub mod ema;
mod in_place;
pub mod launch;
pub mod lr;
