//! Optimisers of the adapters. Independent of models: only variables and gradients.

pub mod adamw;
pub mod clip;
pub mod config;
#[cfg(feature = "cuda")]
mod cuda;
pub mod dynamic_map;
pub mod ema;
mod in_place;
pub mod launch;
pub mod lr;
pub mod moments;
mod update;
