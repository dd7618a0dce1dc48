//! `vtrain train`, and what `vtrain --config run.yaml` means: from a run file to an adapter.
//!
//! Everything that can be wrong is found before anything heavy is loaded; text encoder, VAE and transformer are loaded one
//! after the other, each freed before the next; then the session goes step by step.

use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::check::{Download, Until};
use super::interrupt::Interrupt;
use super::{Exit, Failure, OrExit, precompute, ranks};
use crate::config::RunConfig;
use crate::disk;
use crate::dist::Communicator;
use crate::lock::Lock;
use crate::process;
use crate::report;

mod finish;
mod judge;
pub mod open;
mod page;
pub mod resume;
mod session;
mod videos;

use resume::Resume;
use session::Ended;

/// Train adapters as a run file says
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run file (YAML)
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a key: --set optimizer.lr=1e-4, --set datasets.0.repeats=2 (repeatable; values are YAML)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Go on from a checkpoint: auto (the newest whole one in output_dir, if there is one), never, or its folder
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    pub resume: Resume,
    /// Check everything and write output_dir/config.yaml, but do not train
    #[arg(long)]
    pub dry_run: bool,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let config = RunConfig::load(&args.config, &args.set).or_exit(Exit::Usage)?;
    ranks::together(config, |config, ranks| match args.dry_run {
        true => check(&args, config, ranks),
        false => train(&args, config, ranks),
    })
}

/// Looks for all that would stop a run, and writes what it would run with.
fn check(args: &Args, config: &RunConfig, ranks: &dyn Communicator) -> Result<(), Failure> {
    precompute::checked(config, Until::Trained, Download::No, ranks)?;
    let lock = || Lock::take(&config.output_dir).or_exit(Exit::Training);
    let _lock = ranks.is_first().then(lock).transpose()?;
    resume::find(&args.resume, config, ranks).or_exit(Exit::Usage)?;
    match ranks.is_first() {
        true => write_config(config).or_exit(Exit::Training),
        false => Ok(()),
    }
}

fn train(args: &Args, config: &RunConfig, ranks: &dyn Communicator) -> Result<(), Failure> {
    let (report, family) = precompute::checked(config, Until::Trained, Download::Allowed, ranks)?;
    let family = precompute::here(family)?;
    let lock = || Lock::take(&config.output_dir).or_exit(Exit::Training);
    let _lock = ranks.is_first().then(lock).transpose()?;
    let interrupt = Interrupt::catch().or_exit(Exit::Training)?;
    let checkpoint = resume::find(&args.resume, config, ranks).or_exit(Exit::Usage)?;
    let device = config.open_device().or_exit(Exit::Usage)?;
    let encoded = precompute::precompute(config, &*family, &report, &[], interrupt.flag(), ranks)?;
    process::release(); // the encoders' memory; the transformer comes next
    if ranks.is_first() {
        sweep(&config.output_dir);
        if checkpoint.is_none() {
            resume::set_aside(&config.output_dir).or_exit(Exit::Training)?;
        }
        write_config(config).or_exit(Exit::Training)?;
    }

    let session = open::session(config, &*family, &encoded, &device, checkpoint, ranks)?;
    match session.run(&interrupt).or_exit(Exit::Training)? {
        Ended::Complete => Ok(()),
        Ended::Interrupted(step) => {
            let error = anyhow!("interrupted; step {step} is saved, and the same command goes on from there");
            Err(ranks::shared(
                ranks,
                Failure {
                    exit: Exit::Interrupted,
                    error,
                },
            ))
        }
    }
}

/// Takes away what killed processes left half-written in a run's folder.
fn sweep(folder: &Path) {
    let report = folder.join(report::FOLDER);
    let single = [folder.to_path_buf(), report.join("clips"), report];
    // A folder a step, each.
    let steps = ["validation", "checkpoints"].map(|name| std::fs::read_dir(folder.join(name)));
    let steps = steps
        .into_iter()
        .flatten()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    single.into_iter().chain(steps).for_each(|folder| disk::sweep(&folder));
}

fn write_config(config: &RunConfig) -> anyhow::Result<()> {
    let path = config.output_dir.join("config.yaml");
    disk::write_whole(&path, config.to_yaml()?.as_bytes())?;
    log::info!("The resolved configuration is in {}", path.display());
    Ok(())
}
