//! The training loop and what it leaves behind.

pub mod checkpoint;
pub mod data_difference;
pub mod difference;
pub mod learnable;
pub mod memory;
pub mod metrics;
pub mod micro_batch;
pub mod model_card;
pub mod origin;
pub mod progress;
pub mod recipe;
pub mod segments;
pub mod spikes;
pub mod step;
pub mod tensorboard;
pub mod together;
pub mod validate;
