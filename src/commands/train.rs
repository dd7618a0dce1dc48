//! `vtrain train`, and what `vtrain --config run.yaml` means: from a run file to an adapter.
//!
//! Everything that can be wrong is found before anything heavy is loaded; text encoder, VAE and transformer are loaded one
//! after the other, each freed before the next; then the session goes step by step.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::anyhow;

use super::check::{Download, Until};
use super::interrupt::Interrupt;
use super::settled::{self, Settled};
use super::{Exit, Failure, OrExit, precompute, ranks};
use crate::config::RunConfig;
use crate::data::Report;
use crate::disk;
use crate::distributed::Communicator;
use crate::lock::Lock;
use crate::models::Family;
use crate::process;
use crate::train::checkpoint::Loaded;
use crate::train::resume::{self, Resume};
use crate::train::run::Ended;

pub mod build;
mod planned;
mod watch;

use planned::Planned;
use watch::Watch;

/// Train adapters as a run file says
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run file (YAML)
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a key: --set optimizer.lr=1e-4, --set datasets.0.repeats=2 (repeatable; values are YAML)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Continue from a checkpoint: auto (the newest whole one in output_dir, if there is one), never, or its folder
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    pub resume: Resume,
    /// Check everything and write output_dir/config.yaml, but do not train
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs `vtrain train`: checks, encodes, trains, and writes what was learned.
///
/// # Errors
/// Settings, clips, model files, or a training step that fails, each with its exit code.
pub fn run(args: Args) -> Result<(), Failure> {
    let config = RunConfig::load(&args.config, &args.set).or_exit(Exit::Usage)?;
    ranks::run_distributed(config, |config, ranks| match args.dry_run {
        true => check(&args, config, ranks),
        false => train(&args, config, ranks),
    })
}

/// Looks for all that would stop a run, and writes what it would run with.
fn check(args: &Args, config: &RunConfig, ranks: &dyn Communicator) -> Result<(), Failure> {
    let (report, family) = precompute::checked(config, Until::Trained, Download::No, ranks)?;
    let lock = || Lock::take(&config.output_dir).or_exit(Exit::Training);
    let _lock = ranks.is_first().then(lock).transpose()?;
    let checkpoint = checkpoint(args, config, ranks)?;
    let settled = settled(config, family.as_deref(), &report, checkpoint.as_ref(), ranks)?;
    planned(&settled, family.as_deref(), &report, ranks)?;
    let config = &settled.config;
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
    let checkpoint = checkpoint(args, config, ranks)?;
    let settled = settled(config, Some(&*family), &report, checkpoint.as_ref(), ranks)?;
    let Settled { config, chosen, .. } = &settled;
    let device = config.open_device().or_exit(Exit::Usage)?;
    let planned = planned(&settled, Some(&*family), &report, ranks)?;
    let encoded = precompute::precompute(config, &*family, &report, &[], interrupt.flag(), ranks)?;
    process::release(); // the encoders' memory; the transformer comes next
    if ranks.is_first() {
        config.run_dir().sweep();
        if checkpoint.is_none() {
            config.run_dir().archive().or_exit(Exit::Training)?;
        }
        write_config(config).or_exit(Exit::Training)?;
    }

    let mut run = build::run((config, *chosen), &*family, &encoded, &device, checkpoint, ranks)?;
    let mut watch = Watch::start(&run, &interrupt, planned.peak_bytes);
    let ended = run.run(&mut watch);
    watch.finish(matches!(ended, Ok(Ended::Complete)));
    match ended.or_exit(Exit::Training)? {
        Ended::Complete => Ok(()),
        Ended::Interrupted(step) => {
            let error = anyhow!("interrupted; step {step} is saved, and the same command continues from there");
            let exit = Exit::Interrupted;
            Err(ranks::shared(ranks, Failure { exit, error }))
        }
    }
}

/// The plan of the run's memory, made by every rank for itself; none of a model that is not downloaded yet.
fn planned(
    settled: &Settled,
    family: Option<&dyn Family>,
    report: &Report,
    ranks: &dyn Communicator,
) -> Result<Planned, Failure> {
    let config = &settled.config;
    let device = config.open_device().or_exit(Exit::Usage)?;
    let machine = (&device, ranks.world_size());
    let plan = family.map(|family| planned::plan(config, family, report, machine, &settled.findings));
    ranks::each(ranks, plan.unwrap_or(Ok(Planned { peak_bytes: None })))
}

/// The checkpoint that `--resume` asks for, if there is one.
fn checkpoint(args: &Args, config: &RunConfig, ranks: &dyn Communicator) -> Result<Option<Loaded>, Failure> {
    resume::find(&args.resume, &config.run_dir(), &config.checkpoint, ranks).or_exit(Exit::Usage)
}

/// The settings of a run in which nothing is left to the plan, which are those of its checkpoint.
fn settled(
    config: &RunConfig,
    family: Option<&dyn Family>,
    report: &Report,
    checkpoint: Option<&Loaded>,
    ranks: &dyn Communicator,
) -> Result<Settled, Failure> {
    let recorded = checkpoint.map_or_else(Default::default, |checkpoint| checkpoint.snapshot.state.chosen);
    let settled = settled::settle(config, Until::Trained, family, report, &recorded, ranks)?;
    if let Some(checkpoint) = checkpoint {
        let hyperparameters = settled.config.hyperparameters(ranks.world_size());
        checkpoint
            .fits(&hyperparameters, &BTreeMap::new(), &[])
            .or_exit(Exit::Usage)?;
    }
    Ok(settled)
}

fn write_config(config: &RunConfig) -> anyhow::Result<()> {
    let path = config.run_dir().config();
    disk::write_whole(&path, config.to_yaml()?.as_bytes())?;
    log::info!("The resolved configuration is in {}", path.display());
    Ok(())
}
