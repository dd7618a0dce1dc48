//! What a finished run leaves in its output directory: the adapter, and a card that says what it is.

use anyhow::Context;

use super::open::Parts;
use crate::disk;
use crate::lora::diffusers::{self, Named};
use crate::lora::{TargetModules, trainable::Pair};
use crate::models::family::TakesImage;
use crate::train::checkpoint::ADAPTER;
use crate::train::model_card::{Facts, Sample, Task};

/// Writes `pytorch_lora_weights.safetensors` and `README.md`. With a moving average (`optimizer.ema`) that is what the
/// adapter file holds; the adapters as the last step left them are in the last checkpoint.
pub fn write(parts: &Parts, steps: u64) -> anyhow::Result<()> {
    let folder = &parts.config.output_dir;
    let named: Vec<Named> = match &parts.ema {
        None => parts.pairs.iter().map(Pair::named).collect(),
        Some(ema) => {
            let halves = parts.pairs.iter().zip(ema.averages().chunks(2));
            halves
                .map(|(pair, halves)| Named {
                    layer: &pair.layer,
                    a: &halves[0],
                    b: &halves[1],
                })
                .collect()
        }
    };
    let path = folder.join(ADAPTER);
    disk::write_whole(&path, &diffusers::to_bytes(&parts.config.lora, &named)?)?;
    disk::write_whole(&folder.join("README.md"), facts(parts, steps)?.card().as_bytes())?;
    log::info!("the adapter is {}", path.display());
    Ok(())
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
        batch_size: recipe.batch_size * recipe.gradient_accumulation_steps,
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
