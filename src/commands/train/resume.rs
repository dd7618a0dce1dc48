//! Where a run starts: anew, or from a checkpoint that the same settings wrote.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use candle_core::Tensor;
use serde_json::{Value, json};

use super::open::Parts;
use super::session::Counts;
use crate::config::RunConfig;
use crate::disk::WriteError;
use crate::dist::Communicator;
use crate::finite;
use crate::launch;
use crate::lora::diffusers;
use crate::lora::trainable::Pair;
use crate::optim::lr;
use crate::optim::{adamw, ema};
use crate::report;
use crate::train::checkpoint::{Checkpoints, Loaded, Snapshot, State};

/// `--resume`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest whole checkpoint in the output directory, where there is one.
    Auto,
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

/// The checkpoint to go on from: rank 0 finds it, and all read it. `never` moves what an earlier run left aside, so that
/// nothing of it is lost. A run that was started again after a death goes on from what it saved itself, whatever it was
/// asked to start from.
pub fn find(resume: &Resume, config: &RunConfig, ranks: &dyn Communicator) -> anyhow::Result<Option<Loaded>> {
    let own = match launch::restarted_since() {
        Some(since) if *resume != Resume::Auto => newest(config, ranks, Some(since))?,
        _ => None,
    };
    let found = match (own, resume) {
        (Some(own), _) => Some(own),
        (None, Resume::Auto) => newest(config, ranks, None)?,
        (None, Resume::From(path)) => Some(Loaded::read(path)?),
        (None, Resume::Never) => None,
    };
    if let Some(checkpoint) = &found {
        checkpoint.fits(&settings(config, ranks.world_size()), &BTreeMap::new(), &[])?;
    }
    Ok(found)
}

/// The newest whole checkpoint that rank 0 finds, unless it was written before `since`.
fn newest(config: &RunConfig, ranks: &dyn Communicator, since: Option<SystemTime>) -> anyhow::Result<Option<Loaded>> {
    let mut found = None;
    if ranks.is_first() {
        found = Checkpoints::new(&config.output_dir, &config.checkpoint).newest()?;
        found = found.filter(|checkpoint| since.is_none_or(|since| checkpoint.written() >= Some(since)));
    }
    let path = found.as_ref().map(|checkpoint| checkpoint.path.as_path());
    let path: Option<PathBuf> = serde_json::from_slice(&ranks.broadcast(serde_json::to_vec(&path)?)?)?;
    match path {
        Some(path) if !ranks.is_first() => Loaded::read(&path).map(Some),
        _ => Ok(found),
    }
}

/// What an earlier run may have left in an output directory.
const LEFT: [&str; 10] = [
    "checkpoints",
    "config.yaml",
    "metrics.jsonl",
    "tensorboard",
    "validation",
    "pytorch_lora_weights.safetensors",
    "comfyui_lora.safetensors",
    "README.md",
    report::PAGE,
    report::FOLDER,
];

/// Makes room for a run that starts anew: what is there goes to `previous-1`, `previous-2`, ...
pub fn set_aside(output_dir: &Path) -> anyhow::Result<()> {
    let there: Vec<&str> = LEFT.into_iter().filter(|name| output_dir.join(name).exists()).collect();
    if there.iter().all(|name| *name == "config.yaml") {
        return Ok(());
    }
    let aside = (1..)
        .map(|n| output_dir.join(format!("previous-{n}")))
        .find(|path| !path.exists());
    let aside = aside.context("no number is free for the earlier run's folder")?;
    std::fs::create_dir_all(&aside).map_err(WriteError::at(&aside))?;
    for name in there {
        let from = output_dir.join(name);
        std::fs::rename(&from, aside.join(name)).map_err(WriteError::at(&aside.join(name)))?;
    }
    log::info!("what an earlier run left is now in {}", aside.display());
    Ok(())
}

/// The settings that change what is learned. Where files lie, what is kept and what is shown do not; nor does it matter
/// how many ranks share the micro-batches of a step, which are counted over all of them.
pub fn settings(config: &RunConfig, world_size: usize) -> Value {
    let recipe = &config.train;
    // With a schedule that is flat behind its warm-up, a run may be made longer.
    let length = match config.lr_scheduler.name {
        lr::Name::Constant => Value::Null,
        lr::Name::ConstantWithWarmup if config.lr_scheduler.warmup_ratio.is_none() => Value::Null,
        _ => json!({"steps": recipe.steps, "epochs": recipe.epochs}),
    };
    json!({
        "seed": config.seed,
        "model": {"dtype": config.model.dtype},
        "precompute": {"latents": config.precompute.latents},
        "lora": {
            "rank": config.lora.rank,
            "alpha": config.lora.alpha,
            "use_rslora": config.lora.use_rslora,
            "dropout": config.lora.dropout,
            "target_modules": config.lora.target_modules,
        },
        "train": {
            "length": length,
            "batch_size": recipe.batch_size,
            "gradient_accumulation_steps": recipe.gradient_accumulation_steps * world_size,
            "max_grad_norm": recipe.max_grad_norm,
            "caption_dropout": recipe.caption_dropout,
            "first_frame": recipe.first_frame,
        },
        "diffusion": config.diffusion,
        "optimizer": config.optimizer,
        "lr_scheduler": config.lr_scheduler,
    })
}

/// All that a checkpoint keeps of a run.
pub fn snapshot(parts: &Parts, counts: Counts) -> anyhow::Result<Snapshot> {
    let config = parts.config;
    let named: Vec<_> = parts.pairs.iter().map(Pair::named).collect();
    let mut optimizer = BTreeMap::new();
    let adamw::State { step, moments } = parts.trainer.optimizer.state()?;
    for (name, moments) in names(&parts.pairs).zip(moments) {
        optimizer.insert(format!("{name}.exp_avg"), moments.exp_avg);
        optimizer.insert(format!("{name}.exp_avg_sq"), moments.exp_avg_sq);
    }
    optimizer.insert(STEP.into(), Tensor::new(&[step as i64], &candle_core::Device::Cpu)?);
    if let Some(ema) = &parts.ema {
        let ema::State { updates, averages } = ema.state()?;
        for (name, average) in names(&parts.pairs).zip(averages) {
            optimizer.insert(format!("{name}.ema"), average);
        }
        optimizer.insert(
            UPDATES.into(),
            Tensor::new(&[updates as i64], &candle_core::Device::Cpu)?,
        );
    }
    for (name, tensor) in &optimizer {
        finite::check(name, tensor).context("the optimiser is not finite; no checkpoint is written")?;
    }
    Ok(Snapshot {
        adapter: diffusers::to_bytes(&config.lora, &named)?,
        optimizer,
        state: State {
            step: counts.step,
            samples_seen: counts.samples_seen,
            skipped: counts.skipped,
            seed: config.seed,
            world_size: parts.ranks.world_size(),
            batch_size: config.train.batch_size,
            gradient_accumulation_steps: config.train.gradient_accumulation_steps,
            run: settings(config, parts.ranks.world_size()),
            fingerprints: parts.fingerprints.clone(),
            samples: parts.encoded.list(),
        },
    })
}

/// Names of the optimiser's own counts among its tensors.
const STEP: &str = "step";
const UPDATES: &str = "ema_updates";

/// Names of the variables, A before B, in the order of `Parts::vars`.
fn names(pairs: &[Pair]) -> impl Iterator<Item = String> {
    pairs
        .iter()
        .flat_map(|pair| ["lora_A", "lora_B"].map(|half| format!("{}.{half}", pair.layer)))
}

/// Puts a run back to where the checkpoint was taken.
///
/// # Errors
/// Other fingerprints of model or data than the checkpoint's; tensors that are missing or of other shapes.
pub fn restore(parts: &mut Parts, checkpoint: Loaded) -> anyhow::Result<Counts> {
    let run = settings(parts.config, parts.ranks.world_size());
    checkpoint.fits(&run, &parts.fingerprints, &parts.encoded.list())?;
    let Loaded { path, snapshot } = checkpoint;
    let mut tensors = Tensors {
        tensors: snapshot.optimizer,
    };
    let restored = restore_tensors(parts, &snapshot.adapter, &mut tensors);
    restored.with_context(|| path.display().to_string())?;
    let State {
        step,
        samples_seen,
        skipped,
        ..
    } = snapshot.state;
    log::info!("going on from {}, after step {step}", path.display());
    Ok(Counts {
        step,
        samples_seen,
        skipped,
    })
}

fn restore_tensors(parts: &mut Parts, adapter: &[u8], tensors: &mut Tensors) -> anyhow::Result<()> {
    let adapters = diffusers::from_bytes(adapter)?;
    ensure!(
        adapters.len() == parts.pairs.len(),
        "{} adapters for {} layers",
        adapters.len(),
        parts.pairs.len()
    );
    for pair in &parts.pairs {
        let saved = adapters.get(&pair.layer);
        let saved = saved.with_context(|| format!("has no adapter for {}", pair.layer))?;
        pair.a.set(&saved.a.to_device(pair.a.device())?)?;
        pair.b.set(&saved.b.to_device(pair.b.device())?)?;
    }
    let mut moments = Vec::new();
    let mut averages = Vec::new();
    for name in names(&parts.pairs) {
        moments.push(adamw::Moments {
            exp_avg: tensors.take(&format!("{name}.exp_avg"))?,
            exp_avg_sq: tensors.take(&format!("{name}.exp_avg_sq"))?,
        });
        if parts.ema.is_some() {
            averages.push(tensors.take(&format!("{name}.ema"))?);
        }
    }
    let step = tensors.count(STEP)?;
    parts.trainer.optimizer.restore(adamw::State { step, moments })?;
    if let Some(ema) = &mut parts.ema {
        let updates = tensors.count(UPDATES)?;
        ema.restore(ema::State { updates, averages })?;
    }
    Ok(())
}

/// The optimiser's tensors of a checkpoint.
struct Tensors {
    tensors: BTreeMap<String, Tensor>,
}

impl Tensors {
    fn take(&mut self, name: &str) -> anyhow::Result<Tensor> {
        let tensor = self.tensors.remove(name);
        tensor.with_context(|| format!("the optimiser's tensor {name} is missing"))
    }

    fn count(&mut self, name: &str) -> anyhow::Result<usize> {
        let count = self.take(name)?.to_vec1::<i64>()?;
        ensure!(count.len() == 1, "{name} is no single number");
        Ok(usize::try_from(count[0])?)
    }
}
