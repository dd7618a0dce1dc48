//! A run built from its run file, once everything is encoded: the transformer with its adapters, the optimiser, the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{Device, Var};
use serde_json::json;

use crate::commands::{Exit, Failure, OrExit, ranks};
use crate::config::RunConfig;
use crate::data::Order;
use crate::data::cache::Encoded;
use crate::diffusion::objective::Objective;
use crate::distributed::Communicator;
use crate::lora::frozen::{self, OverFrozen};
use crate::lora::trainable::{LoraPair, ResidualErrors, Trainable};
use crate::lora::{Init, TargetModules};
use crate::models::family::ImageMode;
use crate::models::tiling::Cuts;
use crate::models::{Family, few_bits, registry};
use crate::ops::instructions::Instructions;
use crate::optim::adamw::AdamW;
use crate::optim::ema::Ema;
use crate::rng::Rng;
use crate::train::adapters::TrainedAdapters;
use crate::train::checkpoint::{self, Checkpoints, Loaded, State};
use crate::train::chosen::ChosenSettings;
use crate::train::finish::FinalFiles;
use crate::train::metrics::{LogTail, Metrics};
use crate::train::micro_batch::MicroBatches;
use crate::train::model_card::{Facts, OtherTransformer, Task};
use crate::train::on_step::StepMonitor;
use crate::train::resume;
use crate::train::run::{Run, Schedule};
use crate::train::step::Trainer;
use crate::train::validate::Validator;
use crate::train::validation::Validation;

/// Offset that is added to the run's seed for the adapters' first values, so that they have nothing in common with the draws
/// of the first micro-batch.
const INIT: u64 = 0x5eed_1a0a;

/// Loads the transformer and puts the run where it starts: at its first step, or at a checkpoint. `chosen` are those of its
/// settings that the run file left to the plan.
///
/// # Errors
/// Ranks that do not have the same settings and data; model files; a log that cannot be opened; a checkpoint of another run.
pub fn run<'a>(
    (config, chosen): (&'a RunConfig, ChosenSettings),
    family: &'a dyn Family,
    encoded: &'a Encoded,
    device: &Device,
    checkpoint: Option<Loaded>,
    ranks: &'a dyn Communicator,
) -> Result<Run<'a>, Failure> {
    let run = json!([
        config.hyperparameters(ranks.world_size()),
        encoded.fingerprint().to_string()
    ]);
    ranks::check_consistent(ranks, "settings and data", blake3::hash(run.to_string().as_bytes()))?;
    let mut state = State {
        chosen,
        instructions: device.is_cpu().then(Instructions::detect),
        ..state(config, family, encoded, ranks).or_exit(Exit::Model)?
    };
    let started = match &checkpoint {
        None => trainer(config, family, encoded, device, ranks),
        Some(_) => trainer(&resumed(config), family, encoded, device, ranks),
    };
    let (mut trainer, pairs) = started.or_exit(Exit::Model)?;
    let ema = |decay| Ema::new(trainer.vars.clone(), decay);
    let mut adapters = TrainedAdapters {
        config: &config.lora,
        base_form: base_form(config, family),
        pairs,
        ema: config.optimizer.ema.map(ema).transpose().or_exit(Exit::Training)?,
    };
    let dir = config.run_dir();
    let resumed_at = checkpoint.as_ref().map(|checkpoint| checkpoint.snapshot.state.step);
    let metrics = || Metrics::open(&dir, &config.tracking, resumed_at).or_exit(Exit::Training);
    let metrics = ranks.is_first().then(metrics).transpose()?;
    let checkpoints = Checkpoints::new(&dir, &config.checkpoint);
    if let Some(checkpoint) = checkpoint {
        let restored = resume::restore(checkpoint, &mut state, &mut adapters, &mut trainer.optimizer);
        restored.or_exit(Exit::Usage)?;
    }
    // What the log tells of the steps before: rank 0 has it.
    let empty = LogTail::default();
    let past = metrics.as_ref().map_or(&empty, Metrics::past);
    let past = ranks.broadcast_json(past).or_exit(Exit::Training)?;
    let batches_per_epoch = trainer.source.order.batches_per_epoch();
    Ok(Run {
        state,
        schedule: Schedule {
            total_steps: config.train.total_steps(batches_per_epoch, ranks.world_size()) as u64,
            lr: config.optimizer.lr,
            lr_scheduler: &config.lr_scheduler,
        },
        ranks,
        trainer,
        adapters,
        monitor: StepMonitor::new(&config.train, family, encoded, past),
        metrics,
        checkpoints,
        validation: Validation {
            validator: Validator {
                family,
                encoded,
                prompts: &config.validation.prompts,
                cache: &config.validation.cache,
                dir: dir.clone(),
                load: config.model.load(device).with_vae(config.precompute.vae_memory(None)),
            },
            every: config.validation.every,
            ranks,
            shards_blocks: config.model.residency(ranks).ranks() > 1,
        },
        final_files: FinalFiles {
            dir,
            card: model_card(config, family, encoded, ranks),
            hub: &config.hub,
        },
    })
}

/// The settings of a run whose adapters come from a checkpoint, and need not be approximated.
fn resumed(config: &RunConfig) -> RunConfig {
    let mut config = config.clone();
    config.lora.init.take_if(|init| *init == Init::Residual);
    config
}

/// The transformer with adapters that learn, and what moves them.
///
/// # Errors
/// Model files that cannot be read; adapters that do not fit them.
pub fn trainer<'a>(
    config: &RunConfig,
    family: &'a dyn Family,
    encoded: &'a Encoded,
    device: &Device,
    ranks: &'a dyn Communicator,
) -> anyhow::Result<(Trainer<'a>, Vec<LoraPair>)> {
    let init = Rng::new(config.seed.wrapping_add(INIT));
    let residency = config.model.residency(ranks);
    let lends_in_turn = residency.lends_in_turn();
    let trainable = Arc::new(Trainable::new(&config.lora, &registry::names(), init, device)?);
    let load = config.model.load(device).with_residency(residency);
    let frozen = frozen::read(&config.lora.frozen, &registry::names()).context("lora.frozen")?;
    let denoiser = family.denoiser(&load.with_adapters(Arc::new(OverFrozen {
        frozen: frozen.clone(),
        own: trainable.clone(),
    })))?;
    frozen.finish().context("lora.frozen")?;
    let pairs = trainable.finish()?;
    let vars: Vec<Var> = pairs.iter().flat_map(|pair| [pair.a.clone(), pair.b.clone()]).collect();
    let numbers: usize = vars.iter().map(|var| var.elem_count()).sum();
    log::info!("training {numbers} numbers in the adapters of {} layers", pairs.len());
    if let Some(ResidualErrors { layers, before, after }) = trainable.residual_errors() {
        log::info!(
            "lora.init: residual: the weights of {layers} layers are off by {before:.4} on average, and by {after:.4} with their \
             adapters"
        );
    }
    let samples = encoded.samples.iter().map(|sample| (sample.bucket, sample.repeats));
    let train = &config.train;
    let trainer = Trainer {
        source: MicroBatches {
            family,
            encoded,
            objective: Objective::new(&family.scheduler()?, &config.diffusion)?,
            order: Order::new(samples, train.batch_size, config.seed),
            latents: config.precompute.latents,
            caption_dropout: train.caption_dropout,
            first_frame_conditioning_p: train.first_frame_conditioning_p,
            guidance_embedding: train.guidance_embedding,
            seed: config.seed,
            device: device.clone(),
        },
        ranks,
        denoiser,
        optimizer: AdamW::new(vars.clone(), &config.optimizer)?,
        vars,
        dropout: trainable.dropout(),
        saved_activations: match lends_in_turn {
            true => train.saved_activations(device, &config.output_dir).without_blocks(),
            false => train.saved_activations(device, &config.output_dir),
        },
        accumulation: train.gradient_accumulation_steps as u64,
        max_grad_norm: train.max_grad_norm,
    };
    Ok((trainer, pairs))
}

/// A run before its first step, and what its checkpoints must agree with.
fn state(
    config: &RunConfig,
    family: &dyn Family,
    encoded: &Encoded,
    ranks: &dyn Communicator,
) -> anyhow::Result<State> {
    let mut fingerprints = BTreeMap::new();
    // Rank 0 reads the transformer for all.
    if ranks.is_first() {
        let parts = ["transformer", "scheduler"];
        let transformer = encoded.cache.fingerprint(&family.spec().directory, &parts)?;
        fingerprints.insert("transformer".to_string(), transformer.to_string());
        fingerprints.insert(checkpoint::DATA.to_string(), encoded.fingerprint().to_string());
    }
    Ok(State {
        step: 0,
        samples_seen: 0,
        skipped: 0,
        seed: config.seed,
        world_size: ranks.world_size(),
        batch_size: config.train.batch_size,
        gradient_accumulation_steps: config.train.gradient_accumulation_steps,
        run: config.hyperparameters(ranks.world_size()),
        fingerprints: ranks.broadcast_json(&fingerprints)?,
        samples: encoded.list(),
        chosen: ChosenSettings::default(),
        instructions: None,
    })
}

/// Returns the form in few bits that the transformer's matrices have in this run.
fn base_form(config: &RunConfig, family: &dyn Family) -> Option<String> {
    let asked = config.model.quantization.form().map(|form| form.name().to_string());
    let transformer = family.spec().directory.part("transformer");
    asked.or_else(|| match transformer.file() {
        Some(file) => few_bits::form_of_file(&file.path),
        None => few_bits::form_of(&transformer),
    })
}

/// Facts of the model card that are known before the run.
fn model_card(config: &RunConfig, family: &dyn Family, encoded: &Encoded, ranks: &dyn Communicator) -> Facts {
    let mut trigger_words: Vec<String> = config.datasets.iter().filter_map(|set| set.id_token.clone()).collect();
    trigger_words.dedup();
    let train = &config.train;
    let from_image = match family.spec().image_mode {
        ImageMode::Never => false,
        ImageMode::Always => true,
        ImageMode::Either => train.first_frame_conditioning_p > 0.0,
    };
    Facts {
        name: String::new(),
        base_model: config.model.path.clone(),
        base_form: base_form(config, family),
        transformer: config.model.transformer.as_ref().map(|path| OtherTransformer {
            path: path.display().to_string(),
            class: family.spec().family.transformer.into(),
        }),
        pipeline: family.spec().pipeline(from_image).into(),
        lora_loading: family.spec().family.lora_loading,
        tiles_only: family.spec().tiling.is_some_and(|tiling| tiling.cuts == Cuts::Always),
        task: match from_image {
            true => Task::ImageToVideo,
            false => Task::TextToVideo,
        },
        frame_rate: family.spec().family.frame_rate,
        num_clips: encoded.samples.len(),
        trigger_words,
        rank: config.lora.rank,
        alpha: config.lora.alpha,
        target_modules: match &config.lora.target_modules {
            TargetModules::Suffixes(names) => names.clone(),
            TargetModules::Regex(pattern) => vec![pattern.clone()],
        },
        steps: 0,
        lr: config.optimizer.lr,
        batch_size: train.batch_size * train.gradient_accumulation_steps * ranks.world_size(),
        samples: Vec::new(),
    }
}
