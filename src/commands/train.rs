//! `vtrain train`, and what `vtrain --config run.yaml` means.
//!
//! What exists of it today: the configuration and the data sets are checked as a run would, and the resolved
//! configuration is written. The training step is not built yet, and the command says so.

use std::path::PathBuf;

use anyhow::anyhow;

use super::{Exit, Failure, OrExit, check_dataset};
use crate::config::RunConfig;
use crate::disk;

/// Train adapters as a run file says
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run file (YAML)
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a key: --set optimizer.lr=1e-4, --set datasets.0.repeats=2 (repeatable; values are YAML)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Check everything and write output_dir/config.yaml, but do not train
    #[arg(long)]
    pub dry_run: bool,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let config = RunConfig::load(&args.config, &args.set).or_exit(Exit::Usage)?;
    let report = check_dataset::survey(&config.datasets, false);
    check_dataset::tell(&report);
    check_dataset::judge(&report)?;
    let written = write_config(&config).or_exit(Exit::Training)?;
    log::info!("The resolved configuration is in {}", written.display());
    if args.dry_run {
        return Ok(());
    }
    Err(anyhow!(
        "this version checks a run but cannot train yet; --dry-run stops here with success"
    ))
    .or_exit(Exit::Training)
}

fn write_config(config: &RunConfig) -> anyhow::Result<PathBuf> {
    let path = config.output_dir.join("config.yaml");
    let text = config.to_yaml()?;
    disk::write_whole(&path, text.as_bytes())?;
    Ok(path)
}
