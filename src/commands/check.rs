//! Checks before a run: everything that its settings, the model's configs, the headers of its files and the files that
//! the settings name can reveal. Run before anything is loaded, by a run and by `--dry-run` alike; all failures are
//! reported at once.
//!
//! No rule is duplicated here: the model is built as for real work, but from names and shapes alone ([`Content::Headers`]), and
//! everything else is checked by the code that uses it.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use candle_core::Device;

use super::{Exit, Failure, exit_of};
use crate::config::RunConfig;
use crate::data::cache::Cache;
use crate::diffusion::guidance::GuidanceMode;
use crate::diffusion::objective::Objective;
use crate::disk::writable;
use crate::distributed::Communicator;
use crate::hub;
use crate::lora::adapters::Adapters;
use crate::lora::frozen::{self, OverFrozen};
use crate::lora::selection::{AdapterMismatch, Selection};
use crate::models::family::ImageMode;
use crate::models::{self, Family, registry};
use crate::nn::Load;
use crate::nn::load::Content;
use crate::nn::residency::Residency;
use crate::problems::Problems;
use crate::rng::Rng;
use crate::sample::{self, Request, Start, UnsupportedRequest};

/// Extent to which a command executes a run file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Clips and captions are encoded.
    Encoded,
    /// The adapters are trained.
    Trained,
}

/// Permission to download a model from the Hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Download {
    /// Missing files are fetched.
    Allowed,
    /// For a model that is not cached, dependent checks are skipped, with a message.
    No,
}

/// Failures so far, each with its exit code.
#[derive(Debug, Default)]
pub struct Failures(Vec<(Exit, String)>);

impl Failures {
    /// Records a problem with a key of the run file.
    fn key(&mut self, key: impl Display, why: impl Display) {
        self.0.push((Exit::Usage, format!("{key}: {why}")));
    }

    /// Records a failure, whose message names the place.
    fn failed(&mut self, exit: Exit, done: anyhow::Result<()>) {
        let Err(error) = done else {
            return;
        };
        let exit = exit_of(&error).unwrap_or(exit);
        let why = format!("{error:#}");
        // Two parts of a checkpoint may be read from one folder.
        if self.0.iter().all(|(_, known)| *known != why) {
            self.0.push((exit, why));
        }
    }

    fn of_model(&mut self, done: anyhow::Result<()>) {
        self.failed(Exit::Model, done);
    }

    /// Fails with all failures, if any; the exit code is that of the first kind in the order of the exit codes.
    pub fn judge(self) -> Result<(), Failure> {
        let Some(exit) = self.0.iter().map(|(exit, _)| *exit).min_by_key(|exit| *exit as u8) else {
            return Ok(());
        };
        let all: Vec<String> = self.0.into_iter().map(|(_, why)| why).collect();
        let error = anyhow!(all.join("\n"));
        Err(Failure { exit, error })
    }
}

/// Checks a run and its model; returns the model, or None if it is not cached and must not be downloaded.
///
/// # Errors
/// Lists every problem, by key, file and tensor.
pub fn of_run(
    config: &RunConfig,
    until: Until,
    download: Download,
    ranks: &dyn Communicator,
) -> Result<Option<Box<dyn Family>>, Failure> {
    let mut failures = Failures::default();
    let device = config.open_device().unwrap_or_else(|error| {
        failures.key("device", format!("{error:#}").trim_start_matches("device: "));
        Device::Cpu
    });
    if let Some(lacks) = config.device.lacks(&device, config.model.dtype.into()) {
        failures.key("model.dtype", lacks);
    }
    let folder = config.precompute.folder(&config.run_dir());
    let key = match config.precompute.dir {
        Some(_) => "precompute.dir",
        None => "output_dir",
    };
    if let Err(error) = writable::ensure(&folder) {
        failures.0.push((Exit::Training, format!("{key}: {error}")));
    }
    let family = model(config, download, &mut failures);
    if let Some(family) = &family {
        let residency = (until == Until::Trained).then(|| config.model.residency(ranks));
        parts(config, &**family, &device, residency, &mut failures);
        buckets(config, &**family, &mut failures);
    }
    if until == Until::Trained {
        training(config, family.as_deref(), ranks.is_first(), &mut failures);
    }
    failures.judge()?;
    Ok(family)
}

/// Checks that the checkpoint and its files can fulfil requests, with these adapters, which `load` has as well. Each request
/// comes with the place that it was read from, if any.
///
/// # Errors
/// Lists every problem.
pub fn of_sample<'r>(
    family: &dyn Family,
    load: &Load,
    requests: impl Iterator<Item = (Option<&'r str>, &'r Request)>,
    adapters: &Arc<Adapters>,
) -> Result<(), Failure> {
    let mut failures = Failures::default();
    let mut from_text = true;
    for (place, request) in requests {
        from_text &= matches!(request.start, Start::Text);
        for UnsupportedRequest { why, .. } in sample::refused(family, request) {
            failures.of_model(Err(match place {
                Some(place) => anyhow!("{place}: {why}"),
                None => anyhow!(why),
            }));
        }
    }
    failures.of_model(family.scheduler().map(drop));
    let headers = Load {
        content: Content::Headers,
        ..load.clone()
    };
    failures.of_model(family.text_encoder(&headers).map(drop));
    if !from_text {
        failures.of_model(family.video_encoder(&headers).map(drop));
    }
    failures.of_model(family.video_decoder(&headers).map(drop));
    let built = family.denoiser(&headers).map(drop);
    let adapted = built.is_ok();
    failures.of_model(built);
    if adapted {
        failures.of_model(adapters.finish());
    }
    failures.judge()
}

/// Opens the model, if it is cached.
fn model(config: &RunConfig, download: Download, failures: &mut Failures) -> Option<Box<dyn Family>> {
    let directory = match locate(config, download) {
        Ok(Some(directory)) => directory,
        Ok(None) => {
            log::info!(
                "{} is not downloaded yet: checks that need the model run after the download, before anything is encoded",
                config.model.path
            );
            return None;
        }
        Err(error) => {
            failures.of_model(Err(error.context("model.path")));
            return None;
        }
    };
    match opened(config, &directory) {
        Ok(family) => Some(family),
        Err(error) => {
            failures.of_model(Err(error));
            None
        }
    }
}

fn locate(config: &RunConfig, download: Download) -> anyhow::Result<Option<PathBuf>> {
    let (path, revision) = (&config.model.path, &config.model.revision);
    let variant = config.model.variant.as_deref();
    if download == Download::Allowed {
        return hub::fetch::locate(path, revision, variant).map(Some);
    }
    let here = hub::fetch::here(path, revision, variant)?;
    // Files missing from an interrupted download are fetched by the run.
    let fetched = config.model.directory().is_none() && hub::environment::Environment::of_process().offline.is_none();
    Ok(here.filter(|directory| !fetched || models::is_whole(&config.model.own_folder(directory))))
}

fn opened(config: &RunConfig, directory: &Path) -> anyhow::Result<Box<dyn Family>> {
    let cached = cache(config).remembered(directory);
    models::open_with(config.model.folder(directory)?, config.model.family, &cached)
}

fn cache(config: &RunConfig) -> Cache {
    Cache::open(&config.precompute.folder(&config.run_dir()))
}

/// Checks that the encoding parts, and those for validation, can be built from their files. Parts that only encode may
/// be missing, if the cache has seen them. With `residency` the run trains, with its blocks stored accordingly.
fn parts(
    config: &RunConfig,
    family: &dyn Family,
    device: &Device,
    residency: Option<Residency>,
    failures: &mut Failures,
) {
    let headers = Load {
        content: Content::Headers,
        ..config.model.load(device)
    };
    let prompts = match residency {
        Some(_) => config.validation.prompts.as_slice(),
        None => &[],
    };
    let from_image = prompts.iter().any(|prompt| prompt.image.is_some());
    let cache = cache(config);
    let mut encoder = |parts: &[&str], shows: bool, load: &dyn Fn() -> anyhow::Result<()>| {
        match cache.has_parts(&family.spec().directory, parts) {
            Ok(there) if there || shows => failures.of_model(load()),
            Ok(_) => {} // whether it is needed is decided once the missing encodings are known
            Err(error) => failures.of_model(Err(error)),
        }
    };
    encoder(family.spec().text_encoder_parts, false, &|| {
        family.text_encoder(&headers).map(drop)
    });
    encoder(family.spec().video_encoder_parts, from_image, &|| {
        family.video_encoder(&headers).map(drop)
    });
    if !prompts.is_empty() {
        failures.of_model(family.video_decoder(&headers).map(drop));
    }
    if let Some(residency) = residency {
        transformer(config, family, &headers.with_residency(residency), failures);
    }
}

/// Checks that the transformer can be built from its files, and adapted according to `lora`.
fn transformer(config: &RunConfig, family: &dyn Family, headers: &Load, failures: &mut Failures) {
    // Settings that are wrong for any model are reported by `training`.
    let selection = Selection::new(&config.lora, &registry::names()).ok().map(Arc::new);
    let frozen = match frozen::read(&config.lora.frozen, &registry::names()) {
        Ok(frozen) => frozen,
        Err(error) => return failures.key("lora.frozen", format!("{error:#}")),
    };
    let load = match &selection {
        Some(selection) => headers.with_adapters(Arc::new(OverFrozen {
            frozen: frozen.clone(),
            own: selection.clone(),
        })),
        None => headers.with_adapters(frozen.clone()),
    };
    let built = family.denoiser(&load).map(drop);
    let adapted = built.is_ok();
    failures.of_model(built);
    if let Err(error) = frozen.finish()
        && adapted
    {
        failures.key("lora.frozen", format!("{error:#}"));
    }
    let Some(selection) = selection.filter(|selection| selection.has_seen_layers()) else {
        return;
    };
    if let Err(error) = selection.finish() {
        match error.downcast::<AdapterMismatch>() {
            Ok(AdapterMismatch(all)) => failures.0.extend(all.into_iter().map(|why| (Exit::Usage, why))),
            Err(error) => failures.key("lora", format!("{error:#}")),
        }
    }
    if config.checkpoint.comfyui
        && let Some(layer) = (selection.selected().into_iter()).find(|layer| !family.spec().family.names.has(layer))
    {
        failures.key(
            "checkpoint.comfyui",
            format!("{layer} has no name in ComfyUI; set it to false, or leave that layer out of lora.target_modules"),
        );
    }
}

/// Checks that the model supports all buckets.
fn buckets(config: &RunConfig, family: &dyn Family, failures: &mut Failures) {
    for (i, dataset) in config.datasets.iter().enumerate() {
        for (j, bucket) in dataset.buckets.iter().enumerate() {
            if let Err(error) = family.latent_size(bucket.frames, bucket.height, bucket.width) {
                failures.key(format!("datasets[{i}].buckets[{j}]"), format!("{error:#}"));
            }
        }
    }
}

/// Checks the requirements of training alone. `pushes` is true in the process that uploads the adapter.
fn training(config: &RunConfig, family: Option<&dyn Family>, pushes: bool, failures: &mut Failures) {
    if let Err(AdapterMismatch(all)) = Selection::new(&config.lora, &registry::names()) {
        failures.0.extend(all.into_iter().map(|why| (Exit::Usage, why)));
    }
    if let Some(family) = family {
        objective(config, family, failures);
    }
    for (i, prompt) in config.validation.prompts.iter().enumerate() {
        let refused = Problems::of(|problems| {
            problems.section(format!("validation.prompts[{i}]"), |problems| {
                prompt.refused(family, problems)
            });
        });
        refused.into_iter().for_each(|(key, why)| failures.key(key, why));
    }
    if config.hub.push
        && pushes
        && let Err(error) = hub::push::check()
    {
        failures.key("hub.push", format!("{error:#}"));
    }
}

/// Checks that the checkpoint can be trained with these settings.
fn objective(config: &RunConfig, family: &dyn Family, failures: &mut Failures) {
    let scheduler = match family.scheduler() {
        Ok(scheduler) => scheduler,
        Err(error) => return failures.of_model(Err(error)),
    };
    let drawn = Objective::new(&scheduler, &config.diffusion).and_then(|objective| {
        let buckets = config.datasets.iter().flat_map(|dataset| &dataset.buckets);
        let mut canvases = buckets.filter_map(|b| family.latent_size(b.frames, b.height, b.width).ok());
        canvases.try_for_each(|canvas| objective.draw(1, canvas.seq_len, &mut Rng::new(0)).map(drop))
    });
    failures.failed(Exit::Usage, drawn);
    let told = config.train.guidance_embedding;
    if told != crate::train::config::Config::default().guidance_embedding
        && family.spec().guidance != GuidanceMode::Embedded
    {
        let why = "this checkpoint embeds no guidance scale; remove it";
        failures.key("train.guidance_embedding", format!("{told}: {why}"));
    }
    let share = config.train.first_frame_conditioning_p;
    let why = match family.spec().image_mode {
        ImageMode::Never => "this checkpoint cannot start from an image; remove it",
        ImageMode::Always => "this checkpoint always starts from an image; remove it",
        ImageMode::Either => return,
    };
    if share != 0.0 {
        failures.key("train.first_frame_conditioning_p", format!("{share}: {why}"));
    }
}
