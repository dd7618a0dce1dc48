//! From a run to a checkpoint and back: which checkpoint a run continues from, if any, and what one holds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use candle_core::{Device, Tensor};

use super::adapters::TrainedAdapters;
use super::checkpoint::{Checkpoints, Config, Loaded, Snapshot, State};
use crate::distributed::Communicator;
use crate::finite;
use crate::launch;
use crate::lora::{diffusers, file};
use crate::optim::adamw::{self, AdamW};
use crate::optim::ema;
use crate::run_dir::RunDir;

/// `--resume`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest whole checkpoint in the output directory, where there is one.
    Auto,
    /// Starts anew, and archives what is there.
    Never,
    /// This checkpoint folder.
    From(PathBuf),
}

impl FromStr for Resume {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "never" => Self::Never,
            path => Self::From(path.into()),
        })
    }
}

/// The checkpoint to continue from: rank 0 finds it, and all read it. A run that was started again after a death continues from
/// what it saved itself, whatever it was asked to start from.
///
/// # Errors
/// A checkpoint that cannot be read.
pub fn find(
    resume: &Resume,
    dir: &RunDir,
    config: &Config,
    ranks: &dyn Communicator,
) -> anyhow::Result<Option<Loaded>> {
    let own = match launch::restarted_since() {
        Some(since) if *resume != Resume::Auto => newest(dir, config, ranks, Some(since))?,
        _ => None,
    };
    Ok(match (own, resume) {
        (Some(own), _) => Some(own),
        (None, Resume::Auto) => newest(dir, config, ranks, None)?,
        (None, Resume::From(path)) => Some(Loaded::read(path)?),
        (None, Resume::Never) => None,
    })
}

/// The newest whole checkpoint that rank 0 finds, unless it was written before `since`.
fn newest(
    dir: &RunDir,
    config: &Config,
    ranks: &dyn Communicator,
    since: Option<SystemTime>,
) -> anyhow::Result<Option<Loaded>> {
    let mut found = None;
    if ranks.is_first() {
        found = Checkpoints::new(dir, config).newest()?;
        found = found.filter(|checkpoint| since.is_none_or(|since| checkpoint.written() >= Some(since)));
    }
    let path = found.as_ref().map(|checkpoint| checkpoint.path.clone());
    match ranks.broadcast_json(&path)? {
        Some(path) if !ranks.is_first() => Loaded::read(&path).map(Some),
        _ => Ok(found),
    }
}

/// Names of the optimiser's own counts among its tensors.
const STEP: &str = "step";
const UPDATES: &str = "ema_updates";

/// Everything that a checkpoint keeps of a run.
///
/// # Errors
/// A moment or an average that is not finite.
pub fn snapshot(state: &State, adapters: &TrainedAdapters, optimizer: &AdamW) -> anyhow::Result<Snapshot> {
    let mut tensors = BTreeMap::new();
    let count = |count: usize| Tensor::new(&[count as i64], &Device::Cpu);
    let adamw::State { step, moments } = optimizer.state()?;
    for (name, moments) in adapters.names().zip(moments) {
        for (moment, tensor) in moments.into_tensors() {
            tensors.insert(format!("{name}.{moment}"), tensor);
        }
    }
    tensors.insert(STEP.into(), count(step)?);
    if let Some(ema) = &adapters.ema {
        let ema::State { updates, averages } = ema.state()?;
        for (name, average) in adapters.names().zip(averages) {
            tensors.insert(format!("{name}.ema"), average);
        }
        tensors.insert(UPDATES.into(), count(updates)?);
    }
    for (name, tensor) in &tensors {
        finite::check(name, tensor).context("the optimiser is not finite; no checkpoint is written")?;
    }
    Ok(Snapshot {
        adapter: diffusers::to_bytes(adapters.config, &adapters.newest(), adapters.base_form.as_deref())?,
        optimizer_name: optimizer.name(),
        optimizer: tensors,
        state: state.clone(),
    })
}

/// Puts a run back to where the checkpoint was taken.
///
/// # Errors
/// Other fingerprints of model or data than the checkpoint's; tensors that are missing or of other shapes.
pub fn restore(
    checkpoint: Loaded,
    state: &mut State,
    adapters: &mut TrainedAdapters,
    optimizer: &mut AdamW,
) -> anyhow::Result<()> {
    checkpoint.fits(&state.run, &state.fingerprints, &state.samples)?;
    let Loaded { path, snapshot } = checkpoint;
    if let Some(difference) = snapshot.state.other_instructions(state) {
        log::warn!("{}: {difference}", path.display());
    }
    ensure!(
        snapshot.optimizer_name == optimizer.name(),
        "{}: holds the moments of optimizer.name: {}, and this run has {}; take back the change, or start anew with --resume never",
        path.display(),
        snapshot.optimizer_name.as_str(),
        optimizer.name().as_str()
    );
    let mut tensors = Tensors(snapshot.optimizer);
    restore_adapters(&snapshot.adapter, adapters)
        .and_then(|()| restore_optimizer(&mut tensors, adapters, optimizer))
        .with_context(|| path.display().to_string())?;
    state.step = snapshot.state.step;
    state.samples_seen = snapshot.state.samples_seen;
    state.skipped = snapshot.state.skipped;
    log::info!("continuing from {}, after step {}", path.display(), state.step);
    Ok(())
}

fn restore_adapters(bytes: &[u8], adapters: &TrainedAdapters) -> anyhow::Result<()> {
    let (saved, pairs) = (file::diffusers_from_bytes(bytes)?, &adapters.pairs);
    ensure!(
        saved.len() == pairs.len(),
        "{} adapters for {} layers",
        saved.len(),
        pairs.len()
    );
    for pair in pairs {
        let saved = saved.get(&pair.layer);
        let saved = saved.with_context(|| format!("has no adapter for {}", pair.layer))?;
        let (a, b) = saved.matrices()?;
        pair.a.set(&a.to_device(pair.a.device())?)?;
        pair.b.set(&b.to_device(pair.b.device())?)?;
    }
    Ok(())
}

fn restore_optimizer(
    tensors: &mut Tensors,
    adapters: &mut TrainedAdapters,
    optimizer: &mut AdamW,
) -> anyhow::Result<()> {
    let (mut moments, mut averages) = (Vec::new(), Vec::new());
    for (name, form) in adapters.names().zip(optimizer.forms()) {
        moments.push(adamw::Moments::take(form, |moment| {
            tensors.take(&format!("{name}.{moment}"))
        })?);
        if adapters.ema.is_some() {
            averages.push(tensors.take(&format!("{name}.ema"))?);
        }
    }
    let step = tensors.count(STEP)?;
    optimizer.restore(adamw::State { step, moments })?;
    if let Some(ema) = &mut adapters.ema {
        let updates = tensors.count(UPDATES)?;
        ema.restore(ema::State { updates, averages })?;
    }
    Ok(())
}

/// The optimiser's tensors of a checkpoint.
struct Tensors(BTreeMap<String, Tensor>);

impl Tensors {
    fn take(&mut self, name: &str) -> anyhow::Result<Tensor> {
        let tensor = self.0.remove(name);
        tensor.with_context(|| format!("the optimiser's tensor {name} is missing"))
    }

    fn count(&mut self, name: &str) -> anyhow::Result<usize> {
        let count = self.take(name)?.to_vec1::<i64>()?;
        ensure!(count.len() == 1, "{name} is no single number");
        Ok(usize::try_from(count[0])?)
    }
}
