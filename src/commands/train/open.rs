//! The parts of a run, put together once everything is encoded: the transformer with its adapters, the optimiser, the
//! logs.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Var};
use serde_json::json;

use super::resume;
use super::session::{Counts, Session};
use crate::commands::{Exit, Failure, OrExit, ranks};
use crate::config::RunConfig;
use crate::data::Order;
use crate::data::cache::Encoded;
use crate::diffusion::objective::Objective;
use crate::dist::Communicator;
use crate::lora::trainable::{Pair, Trainable};
use crate::models::{Family, Sharding, rooms};
use crate::nn::shards::Residency;
use crate::optim::adamw::AdamW;
use crate::optim::ema::Ema;
use crate::rng::Rng;
use crate::train::checkpoint::{self, Checkpoints, Loaded};
use crate::train::metrics::{Metrics, Past};
use crate::train::micro_batch::Source;
use crate::train::step::Trainer;
use crate::train::validate::Validator;

/// What is added to the run's seed for the adapters' first values, so that they have nothing in common with the draws
/// of the first micro-batch.
const INIT: u64 = 0x5eed_1a0a;

/// All that a session works with.
pub struct Parts<'a> {
    pub config: &'a RunConfig,
    pub ranks: &'a dyn Communicator,
    pub encoded: &'a Encoded,
    pub family: &'a dyn Family,
    pub trainer: Trainer<'a>,
    pub pairs: Vec<Pair>,
    pub ema: Option<Ema>,
    pub validator: Validator<'a>,
    /// Of rank 0 alone.
    pub metrics: Option<Metrics>,
    pub checkpoints: Checkpoints,
    /// Of the transformer and of the encoded data.
    pub fingerprints: BTreeMap<String, String>,
}

impl Parts<'_> {
    /// Whether ranks share the transformer's blocks out, and run them in step.
    pub fn shares_blocks(&self) -> bool {
        residency(self.config, self.ranks).ranks() > 1
    }

    /// A clip, by its place among the samples.
    pub fn name(&self, sample: usize) -> String {
        let sample = self.encoded.samples.get(sample);
        sample.map_or_else(String::new, |sample| sample.video.display().to_string())
    }

    /// A matrix of the adapters, by its place among the variables.
    pub fn adapter(&self, place: usize) -> String {
        let half = ["lora_A", "lora_B"][place % 2];
        let pair = self.pairs.get(place / 2);
        pair.map_or_else(String::new, |pair| format!("{}.{half}", pair.layer))
    }
}

/// Loads the transformer and puts the run where it starts.
pub fn session<'a>(
    config: &'a RunConfig,
    family: &'a dyn Family,
    encoded: &'a Encoded,
    device: &Device,
    checkpoint: Option<Loaded>,
    ranks: &'a dyn Communicator,
) -> Result<Session<'a>, Failure> {
    let run = json!([
        resume::settings(config, ranks.world_size()),
        encoded.fingerprint().to_string()
    ]);
    ranks::agree(ranks, "settings and data", blake3::hash(run.to_string().as_bytes()))?;
    let fingerprints = fingerprints(family, encoded, ranks).or_exit(Exit::Model)?;
    let (trainer, pairs) = trainer(config, family, encoded, device, ranks).or_exit(Exit::Model)?;
    let vars = trainer.vars.clone();
    let ema = config.optimizer.ema.map(|decay| Ema::new(vars, decay)).transpose();
    let total_steps = config
        .train
        .total_steps(trainer.source.order.batches_per_epoch(), ranks.world_size()) as u64;
    let resumed_at = checkpoint.as_ref().map(|checkpoint| checkpoint.snapshot.state.step);
    let metrics = || Metrics::open(&config.output_dir, &config.tracking, resumed_at).or_exit(Exit::Training);
    let mut parts = Parts {
        config,
        ranks,
        encoded,
        family,
        trainer,
        pairs,
        ema: ema.or_exit(Exit::Training)?,
        validator: Validator {
            family,
            encoded,
            prompts: &config.validation.prompts,
            folder: config.output_dir.join("validation"),
            dtype: config.model.dtype.into(),
            device: device.clone(),
        },
        metrics: ranks.is_first().then(metrics).transpose()?,
        checkpoints: Checkpoints::new(&config.output_dir, &config.checkpoint),
        fingerprints,
    };
    let counts = match checkpoint {
        Some(checkpoint) => resume::restore(&mut parts, checkpoint).or_exit(Exit::Usage)?,
        None => Counts::default(),
    };
    let past = past(&parts).or_exit(Exit::Training)?;
    Ok(Session::new(parts, counts, total_steps, past))
}

/// What the log tells of the steps before: rank 0 has it.
fn past(parts: &Parts) -> anyhow::Result<Past> {
    let empty = Past::default();
    let past = parts.metrics.as_ref().map_or(&empty, Metrics::past);
    Ok(serde_json::from_slice(
        &parts.ranks.broadcast(serde_json::to_vec(past)?)?,
    )?)
}

/// The transformer with adapters that learn, and what moves them.
pub fn trainer<'a>(
    config: &RunConfig,
    family: &'a dyn Family,
    encoded: &'a Encoded,
    device: &Device,
    ranks: &'a dyn Communicator,
) -> anyhow::Result<(Trainer<'a>, Vec<Pair>)> {
    let init = Rng::new(config.seed.wrapping_add(INIT));
    let residency = residency(config, ranks);
    let sharing = residency.ranks() > 1;
    let trainable = Trainable::new(&config.lora, &rooms::names(), init, device)?;
    let trainable = Arc::new(trainable.with_residency(residency));
    let denoiser = family.denoiser(Some(trainable.clone()))?;
    let pairs = trainable.finish()?;
    let vars: Vec<Var> = pairs.iter().flat_map(|pair| [pair.a.clone(), pair.b.clone()]).collect();
    let numbers: usize = vars.iter().map(|var| var.elem_count()).sum();
    log::info!("training {numbers} numbers in the adapters of {} layers", pairs.len());
    let samples = encoded.samples.iter().map(|sample| (sample.bucket, sample.repeats));
    let recipe = &config.train;
    let trainer = Trainer {
        source: Source {
            family,
            encoded,
            objective: Objective::new(&family.scheduler()?, &config.diffusion)?,
            order: Order::new(samples, recipe.batch_size, config.seed),
            latents: config.precompute.latents,
            caption_dropout: recipe.caption_dropout,
            first_frame: recipe.first_frame,
            seed: config.seed,
            device: device.clone(),
        },
        ranks,
        denoiser,
        optimizer: AdamW::new(vars.clone(), &config.optimizer)?,
        vars,
        dropout: trainable.dropout(),
        keep: if sharing {
            recipe.keep(device).without_blocks()
        } else {
            recipe.keep(device)
        },
        accumulation: recipe.gradient_accumulation_steps as u64,
        max_grad_norm: recipe.max_grad_norm,
    };
    Ok((trainer, pairs))
}

/// How the transformer's blocks live.
pub fn residency(config: &RunConfig, ranks: &dyn Communicator) -> Residency {
    match (config.model.sharding, ranks.sharing()) {
        (Sharding::Full, Some(ranks)) => Residency::Shared(ranks),
        _ => Residency::Whole,
    }
}

/// What the checkpoint's numbers depend on besides the settings. Rank 0 reads the transformer for all.
fn fingerprints(
    family: &dyn Family,
    encoded: &Encoded,
    ranks: &dyn Communicator,
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut fingerprints = BTreeMap::new();
    if ranks.is_first() {
        let parts = ["transformer", "scheduler"];
        let transformer = encoded.cache.fingerprint(family.directory(), &parts)?;
        fingerprints.insert("transformer".to_string(), transformer.to_string());
        fingerprints.insert(checkpoint::DATA.to_string(), encoded.fingerprint().to_string());
    }
    Ok(serde_json::from_slice(
        &ranks.broadcast(serde_json::to_vec(&fingerprints)?)?,
    )?)
}
