//! vtrain: LoRA fine-tuning and sampling for video diffusion transformers.
//!
//! The story, top to bottom: a clip on disk -> [`video`] decodes it -> [`data`] fits it to a bucket -> the family's
//! VAE and text encoder encode it -> the cache keeps it -> `train` draws noise and runs the DiT block by block ->
//! [`optim`] moves the adapters -> [`lora`] writes them -> `sample` shows what they learned.
//!
//! Modules stand in layers, lowest first; each imports only from lower ones (`tests/architecture.rs` checks).

// 0: no knowledge of clips, models or runs
pub mod disk;
pub mod dist;
pub mod finite;
pub mod hub;
pub mod launch;
pub mod magic;
pub mod ops;
pub mod process;
pub mod rng;
pub mod wire;
// 1: clips, mathematics, layers and locks
pub mod diffusion;
pub mod lock;
pub mod nn;
pub mod optim;
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
// 6: a run, as its file describes it, and as a page shows it
pub mod config;
pub mod report;
// 7: run files from other trainers' commands
pub mod migrate;
// 8: one verb, one file
pub mod commands;
// 9: the front door
pub mod cli;
