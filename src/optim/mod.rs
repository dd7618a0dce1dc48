//! What moves the adapters. Knows variables and gradients only.

pub mod adamw;
pub mod lr;
