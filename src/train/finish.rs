//! Files that a finished run leaves in its output directory: the adapter, and a card that says what it is.

use std::path::Path;

use anyhow::Context;

use super::adapters::TrainedAdapters;
use super::model_card::{Facts, Sample};
use super::validate::Validator;
use crate::disk;
use crate::hub::is_repository;
use crate::hub::push::{self, Upload};
use crate::lora::adapters::{Adapter, Deltas};
use crate::lora::bytes::Metadata;
use crate::lora::comfyui;
use crate::lora::diffusers;
use crate::run_dir::{ADAPTER, COMFYUI_ADAPTER, MODEL_CARD, RunDir};

/// Writes the files of a finished run.
pub struct FinalFiles<'a> {
    /// Where they go.
    pub dir: RunDir,
    /// Facts of the model card but for those that only the end knows: name, steps and samples.
    pub card: Facts,
    /// Where they are uploaded to.
    pub hub: &'a push::Config,
}

impl FinalFiles<'_> {
    /// Writes `pytorch_lora_weights.safetensors`, `comfyui_lora.safetensors` and `README.md`, and pushes them if asked. With a
    /// moving average (`optimizer.ema`) that is what the adapter files hold; the adapters as the last step left them are in
    /// the last checkpoint.
    pub fn write(&self, steps: u64, adapters: &TrainedAdapters, validator: &Validator) -> anyhow::Result<()> {
        let folder = self.dir.path();
        let path = folder.join(ADAPTER);
        let bytes = diffusers::to_bytes(adapters.config, &adapters.result(), adapters.base_form.as_deref())?;
        disk::write_whole(&path, &bytes)?;
        if let Some((name, bytes)) = self.comfyui(steps, adapters, validator)? {
            disk::write_whole(&folder.join(name), &bytes)?;
        }
        let card = self.card(steps, validator)?;
        disk::write_whole(&folder.join(MODEL_CARD), card.card().as_bytes())?;
        log::info!("the adapter is {}", path.display());
        self.push(&card);
        Ok(())
    }

    /// Name and bytes of the adapter for ComfyUI; none, and a warning, where it cannot be written.
    pub fn comfyui(
        &self,
        steps: u64,
        adapters: &TrainedAdapters,
        validator: &Validator,
    ) -> anyhow::Result<Option<(&'static str, Vec<u8>)>> {
        match for_comfyui(adapters, validator, &self.card(steps, validator)?) {
            Ok(bytes) => Ok(Some((COMFYUI_ADAPTER, bytes))),
            Err(error) => {
                log::warn!("{COMFYUI_ADAPTER} is not written: {error:#}"); // the other file has all of it
                Ok(None)
            }
        }
    }

    fn card(&self, steps: u64, validator: &Validator) -> anyhow::Result<Facts> {
        Ok(Facts {
            name: self.dir.name().context("the output directory has no name")?,
            steps,
            samples: self.samples(steps, validator),
            ..self.card.clone()
        })
    }

    /// Validation videos of the last step, as far as they are there.
    fn samples(&self, steps: u64, validator: &Validator) -> Vec<Sample> {
        let prompts = validator.prompts.iter().enumerate();
        let samples = prompts.filter_map(|(index, prompt)| {
            let path = validator.path(index, steps);
            let prompt = prompt.prompt.clone();
            let relative = self.dir.relative(&path).filter(|_| path.is_file());
            relative.map(|path| Sample { prompt, path })
        });
        samples.collect()
    }

    /// Uploads what was written. What goes wrong is a warning: the run is done all the same.
    fn push(&self, card: &Facts) {
        let Some(repo) = self.hub.repo.as_ref().filter(|_| self.hub.push) else {
            return;
        };
        let names = [ADAPTER, COMFYUI_ADAPTER, MODEL_CARD]
            .into_iter()
            .chain(card.samples.iter().map(|sample| sample.path.as_str()));
        let files: Vec<Upload> = names
            .map(|name| push::below(self.dir.path(), name))
            .filter(|file| file.path.is_file())
            .collect();
        let summary = format!("{} after {} steps", card.name, card.steps);
        match push::push(repo, self.hub.private, &summary, &files) {
            Ok(address) => log::info!("pushed to {address}"),
            Err(error) => log::warn!(
                "the adapter is on disk, but was not pushed to {repo}: {error:#}; start the same command again to push it"
            ),
        }
    }
}

/// The adapters as ComfyUI names them, with what is known of the run.
fn for_comfyui(adapters: &TrainedAdapters, validator: &Validator, card: &Facts) -> anyhow::Result<Vec<u8>> {
    let names = validator.family.spec().family.names;
    let layers = adapters.result().into_iter().map(|named| {
        let (a, b) = named.stored()?;
        let adapter = Adapter {
            a,
            b,
            alpha: adapters.config.alpha,
            use_rslora: adapters.config.use_rslora,
        };
        Ok((named.layer.to_string(), adapter))
    });
    comfyui::write(
        &layers.collect::<anyhow::Result<_>>()?,
        &Deltas::new(),
        names,
        &metadata(card),
    )
}

/// Metadata of a run in the header of its adapter. Keys of `modelspec` are those of Stability AI's ModelSpec.
fn metadata(card: &Facts) -> Metadata {
    let mut metadata = Metadata::from(
        [
            ("modelspec.title", card.name.clone()),
            ("vtrain.base_model", base_name(&card.base_model)),
            ("vtrain.learning_rate", card.lr.to_string()),
            ("vtrain.batch_size", card.batch_size.to_string()),
            ("vtrain.num_clips", card.num_clips.to_string()),
            ("vtrain.steps", card.steps.to_string()),
        ]
        .map(|(key, text)| (key.to_string(), text)),
    );
    if let Some(form) = &card.base_form {
        metadata.insert(diffusers::BASE_FORM.into(), form.clone());
    }
    if let Some(other) = &card.transformer {
        metadata.insert("vtrain.transformer".into(), base_name(&other.path));
    }
    if !card.trigger_words.is_empty() {
        metadata.insert("modelspec.trigger_phrase".into(), card.trigger_words.join(", "));
    }
    metadata
}

/// A repository as it is; of a path its last name, since adapters are passed on.
fn base_name(base: &str) -> String {
    let last = Path::new(base).file_name().filter(|_| !is_repository(base));
    last.map_or_else(|| base.into(), |name| name.to_string_lossy().into_owned())
}
