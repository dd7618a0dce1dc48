//! The training loop and what it leaves behind.

pub mod checkpoint;
pub mod metrics;
pub mod micro_batch;
pub mod recipe;
pub mod segments;
pub mod step;
pub mod validate;
