//! The training loop and its output files.

pub mod adapters;
pub mod checkpoint;
pub mod chosen;
pub mod collectives;
pub mod config;
pub mod config_diff;
pub mod data_diff;
pub mod finish;
pub mod learnable;
pub mod loss_spikes;
pub mod memory;
pub mod metrics;
pub mod micro_batch;
pub mod model_card;
pub mod nonfinite;
pub mod observer;
pub mod offload;
pub mod on_step;
pub mod progress;
pub mod resume;
pub mod run;
pub mod segments;
pub mod step;
pub mod tensorboard;
pub mod validate;
pub mod validation;
