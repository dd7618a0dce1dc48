//! The training loop and what it leaves behind.

pub mod checkpoint;
pub mod difference;
pub mod memory;
pub mod metrics;
pub mod model_card;
pub mod progress;
pub mod recipe;
pub mod tensorboard;
pub mod validate;
