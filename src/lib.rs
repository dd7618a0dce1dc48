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
pub mod ops;
pub mod paths;
pub mod process;
pub mod protobuf_wire;
pub mod rng;
pub mod url;
// 1: clips, mathematics, layers, and the folder of a run
pub mod diffusion;
pub mod lock;
pub mod nn;
pub mod optim;
pub mod run_dir;
pub mod video;
// 2: data, adapters and encoders
pub mod data;
pub mod lora;
pub mod text;
pub mod vision;
// 3: the families
pub mod models;
// 4: the sampler
pub mod sample;
// 5: the loop
pub mod train;
// 6: a run's configuration and its report page
pub mod config;
pub mod report;
// 7: run files from other trainers' commands
pub mod migrate;
// 8: one verb, one file
pub mod commands;
// 9: the command line
pub mod cli;
