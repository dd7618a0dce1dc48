//! Trains an adapter for a few steps: what `vtrain train` does, without checkpoints, validation videos and logs.
//!
//! ```text
//! cargo run --release --example train -- configs/cogvideox/tiny.yaml adapter.safetensors --steps 4
//! ```
//!
//! The adapter is written as diffusers and `vtrain sample --lora` read it.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::anyhow;
use clap::Parser;
use vtrain::commands::check::{Download, Until};
use vtrain::commands::train::build;
use vtrain::commands::{Failure, precompute};
use vtrain::config::RunConfig;
use vtrain::distributed::Single;
use vtrain::lora::diffusers;

/// Train an adapter for a few steps
#[derive(Debug, Parser)]
pub struct Args {
    /// A run file
    config: PathBuf,
    /// The adapter file to write
    output: PathBuf,
    /// Override a key of the run file: --set optimizer.lr=1e-4
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Training steps
    #[arg(long, default_value_t = 4)]
    steps: u64,
}

fn main() -> anyhow::Result<()> {
    run(Args::parse())
}

/// Trains, prints the loss of each step, and writes the adapter.
///
/// # Errors
/// A run file, clips or model files that cannot be used; a step whose loss is not finite.
pub fn run(args: Args) -> anyhow::Result<()> {
    let failed = |failure: Failure| failure.error;
    let config = RunConfig::load(&args.config, &args.set)?;
    let device = config.open_device()?;
    let ranks = Single; // one process

    // Clips are looked at and the model is checked before anything is loaded; then each clip and caption is encoded once.
    let (report, family) = precompute::checked(&config, Until::Trained, Download::Allowed, &ranks).map_err(failed)?;
    let family = precompute::here(family).map_err(failed)?;
    let stop = AtomicBool::new(false);
    let encoded = precompute::precompute(&config, &*family, &report, &[], &stop, &ranks).map_err(failed)?;

    // The transformer with adapters on the layers that `lora.target_modules` names, the optimiser, the order of the clips.
    let (mut trainer, adapters) = build::trainer(&config, &*family, &encoded, &device, &ranks)?;
    for step in 0..args.steps {
        let lr = config
            .lr_scheduler
            .at(config.optimizer.lr, step as usize, args.steps as usize);
        let outcome = trainer.step(step, lr)?;
        println!("step {}: loss {:.4}, lr {lr:.1e}", step + 1, outcome.loss);
        if let Some(fault) = outcome.fault {
            let fault = fault.in_words(|variable| adapters[variable / 2].layer.clone());
            return Err(anyhow!("step {} is not finite: {fault}", step + 1));
        }
    }

    let named: Vec<_> = adapters.iter().map(|pair| pair.named()).collect();
    std::fs::write(&args.output, diffusers::to_bytes(&config.lora, &named, None)?)?;
    println!("adapters of {} layers in {}", named.len(), args.output.display());
    Ok(())
}
