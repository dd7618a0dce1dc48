//! What a finished run leaves in its output directory: the adapter, and a card that says what it is.

use anyhow::Context;
use candle_core::DType;

use super::open::Parts;
use crate::disk;
use crate::hub::push::{self, Upload};
use crate::lora::adapters::{Adapter, Deltas};
use crate::lora::bytes::About;
use crate::lora::diffusers::{self, Named};
use crate::lora::{TargetModules, comfyui, trainable::Pair};
use crate::models::family::TakesImage;
use crate::models::rooms;
use crate::train::checkpoint::ADAPTER;
use crate::train::model_card::{Facts, Sample, Task};

/// The adapter for ComfyUI.
const COMFYUI: &str = "comfyui_lora.safetensors";

/// The model card.
const CARD: &str = "README.md";

/// Writes `pytorch_lora_weights.safetensors`, `comfyui_lora.safetensors` and `README.md`, and pushes them if asked. With a
/// moving average (`optimizer.ema`) that is what the adapter files hold; the adapters as the last step left them are in the
/// last checkpoint.
pub fn write(parts: &Parts, steps: u64) -> anyhow::Result<()> {
    let folder = &parts.config.output_dir;
    let path = folder.join(ADAPTER);
    disk::write_whole(&path, &diffusers::to_bytes(&parts.config.lora, &learned(parts))?)?;
    if let Some((name, bytes)) = file_for_comfyui(parts, steps)? {
        disk::write_whole(&folder.join(name), &bytes)?;
    }
    let facts = facts(parts, steps)?;
    disk::write_whole(&folder.join(CARD), facts.card().as_bytes())?;
    log::info!("the adapter is {}", path.display());
    push(parts, &facts);
    Ok(())
}

/// What was learned: the moving average where there is one.
fn learned<'a>(parts: &'a Parts) -> Vec<Named<'a>> {
    let Some(ema) = &parts.ema else {
        return parts.pairs.iter().map(Pair::named).collect();
    };
    let halves = parts.pairs.iter().zip(ema.averages().chunks(2));
    halves
        .map(|(pair, halves)| Named {
            layer: &pair.layer,
            a: &halves[0],
            b: &halves[1],
        })
        .collect()
}

/// `comfyui_lora.safetensors`: its name and bytes.
pub fn file_for_comfyui(parts: &Parts, steps: u64) -> anyhow::Result<Option<(&'static str, Vec<u8>)>> {
    match for_comfyui(parts, &learned(parts), &facts(parts, steps)?) {
        Ok(bytes) => Ok(Some((COMFYUI, bytes))),
        Err(error) => {
            log::warn!("{COMFYUI} is not written: {error:#}"); // the other file has all of it
            Ok(None)
        }
    }
}

/// Uploads what was written. What goes wrong is told of: the run is done all the same.
fn push(parts: &Parts, facts: &Facts) {
    let (config, folder) = (&parts.config.hub, &parts.config.output_dir);
    let Some(repo) = config.repo.as_ref().filter(|_| config.push) else {
        return;
    };
    let names = [ADAPTER, COMFYUI, CARD]
        .into_iter()
        .chain(facts.samples.iter().map(|sample| sample.path.as_str()));
    let files: Vec<Upload> = names
        .map(|name| push::below(folder, name))
        .filter(|file| file.path.is_file())
        .collect();
    match push::push(
        repo,
        config.private,
        &format!("{} after {} steps", facts.name, facts.steps),
        &files,
    ) {
        Ok(address) => log::info!("pushed to {address}"),
        Err(error) => log::warn!(
            "the adapter is on disk, but was not pushed to {repo}: {error:#}; start the same command again to push it"
        ),
    }
}

/// The same adapters as ComfyUI names them, with what is known of the run.
fn for_comfyui(parts: &Parts, named: &[Named], facts: &Facts) -> anyhow::Result<Vec<u8>> {
    let names = rooms::of_checkpoint(parts.family.directory())?.names;
    let config = &parts.config.lora;
    let adapters = named.iter().map(|Named { layer, a, b }| {
        let adapter = Adapter {
            a: a.to_dtype(DType::F32)?,
            b: b.to_dtype(DType::F32)?,
            alpha: config.alpha,
            use_rslora: config.use_rslora,
        };
        Ok((layer.to_string(), adapter))
    });
    comfyui::write(
        &adapters.collect::<anyhow::Result<_>>()?,
        &Deltas::new(),
        names,
        &about(facts),
    )
}

/// What the header says of a run. Keys of `modelspec` are those of Stability AI's ModelSpec.
fn about(facts: &Facts) -> About {
    let mut about = About::from(
        [
            ("modelspec.title", facts.name.clone()),
            ("vtrain.learning_rate", facts.lr.to_string()),
            ("vtrain.batch_size", facts.batch_size.to_string()),
            ("vtrain.num_clips", facts.num_clips.to_string()),
            ("vtrain.steps", facts.steps.to_string()),
        ]
        .map(|(key, text)| (key.to_string(), text)),
    );
    if !facts.trigger_words.is_empty() {
        about.insert("modelspec.trigger_phrase".into(), facts.trigger_words.join(", "));
    }
    about
}

fn facts(parts: &Parts, steps: u64) -> anyhow::Result<Facts> {
    let config = parts.config;
    let name = config
        .output_dir
        .file_name()
        .context("the output directory has no name")?;
    let mut trigger_words: Vec<String> = config.datasets.iter().filter_map(|set| set.id_token.clone()).collect();
    trigger_words.dedup();
    let recipe = &config.train;
    let from_image = match parts.family.takes_image() {
        TakesImage::Never => false,
        TakesImage::Always => true,
        TakesImage::Either => recipe.first_frame > 0.0,
    };
    Ok(Facts {
        name: name.to_string_lossy().into_owned(),
        base_model: config.model.path.clone(),
        pipeline: parts.family.pipeline(from_image).into(),
        task: match from_image {
            true => Task::ImageToVideo,
            false => Task::TextToVideo,
        },
        frame_rate: parts.family.frame_rate(),
        num_clips: parts.encoded.samples.len(),
        trigger_words,
        rank: config.lora.rank,
        alpha: config.lora.alpha,
        target_modules: match &config.lora.target_modules {
            TargetModules::Suffixes(names) => names.clone(),
            TargetModules::Regex(pattern) => vec![pattern.clone()],
        },
        steps,
        lr: config.optimizer.lr,
        batch_size: recipe.batch_size * recipe.gradient_accumulation_steps * parts.ranks.world_size(),
        samples: samples(parts, steps),
    })
}

/// The validation videos of the last step that are there.
fn samples(parts: &Parts, steps: u64) -> Vec<Sample> {
    let prompts = parts.validator.prompts.iter().enumerate();
    let there = prompts.filter_map(|(index, prompt)| {
        let path = parts.validator.path(index, steps);
        let below = path.strip_prefix(&parts.config.output_dir).ok()?;
        path.is_file().then(|| Sample {
            prompt: prompt.prompt.clone(),
            path: below.to_string_lossy().replace('\\', "/"),
        })
    });
    there.collect()
}
