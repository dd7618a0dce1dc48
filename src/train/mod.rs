//! The training loop and what it leaves behind.

pub mod checkpoint;
pub mod difference;
pub mod metrics;
pub mod recipe;
pub mod validate;
