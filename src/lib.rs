//! vtrain: LoRA fine-tuning and sampling for video diffusion transformers.
//!
//! Data flow: a clip on disk -> [`video`] decodes it -> [`data`] fits it to a bucket -> the family's VAE and text
//! encoder encode it -> the cache stores it -> `train` draws noise and runs the DiT block by block -> [`optim`] updates
//! the adapters -> [`lora`] writes them -> `sample` shows the result.
//!
//! Modules form layers, lowest first; each imports only from lower ones (`tests/architecture.rs` checks).

// 0: no knowledge of clips, models or runs
pub mod disk;
pub mod distributed;
pub mod finite;
pub mod hub;
pub mod launch;
pub mod magic;
pub mod named_settings;
pub mod paths;
pub mod problems;
pub mod process;
pub mod protobuf_wire;
pub mod rng;
pub mod url;
// 1: operations, clips, configs of checkpoints, and the folder of a run
pub mod diffusers_config;
pub mod lock;
pub mod ops;
pub mod run_dir;
pub mod video;
// 2: mathematics and layers
pub mod diffusion;
pub mod nn;
pub mod optim;
// 3: data, adapters and encoders
pub mod data;
pub mod lora;
pub mod text;
pub mod vision;
// 4: the families
pub mod models;
// 5: the sampler
pub mod sample;
// 6: the loop
pub mod train;
// 7: a run's configuration and its report page
pub mod config;
pub mod report;
// 8: run files from other trainers' commands, and what a run will take
pub mod migrate;
pub mod plan;
// 9: one verb, one file
pub mod commands;
// 10: the command line
pub mod cli;
