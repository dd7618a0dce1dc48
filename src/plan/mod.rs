//! Memory, disk space and time of a run, before anything is loaded.
//!
//! Every stage is planned from the configs and the headers of its files. The transformer runs as an outline of itself on
//! inputs of a few tokens, so that a plan follows the code ([`denoising`]); the autoencoder's layers are passed in thought
//! (`coding`); what stays in memory besides is added up ([`training`]). The stages come one after the other, and each
//! frees its model.

mod blank;
pub mod changes;
pub mod choice;
mod coding;
pub mod denoising;
mod excerpt;
pub mod findings;
mod least;
mod outlined;
mod passes;
pub mod refusal;
mod sizes;
pub mod suggestions;
pub mod time;
pub mod timeline;
pub mod training;
mod videos;

use anyhow::{Context, bail};
use candle_core::{DType, Device};
use serde::Serialize;

use crate::config::RunConfig;
use crate::data::{Bucket, Report};
use crate::models::family::Parts;
use crate::models::t5_conditioner::EMBEDDINGS;
use crate::models::text_memory::TextMemory;
use crate::models::{Family, Offload, Sharding, registry};
use crate::nn::load::Content;
use crate::nn::storage::quantize::Quantization;
use crate::nn::weights::WeightBytes;
use crate::nn::{Load, WeightFolder, Weights};
use denoising::{Clips, Transformer};
use findings::{Findings, TextBytes};
use timeline::Place;
use training::{Memory, Training};

/// Folder of a checkpoint's second text encoder.
const SECOND_ENCODER: &str = "text_encoder_2";

/// Slots that blocks are streamed through.
const SLOTS: u64 = 2;

/// Plan of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Training, of the clips that take the most.
    pub training: Training,
    /// Embedding of the captions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Memory>,
    /// Encoding of the clips.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encode: Option<Memory>,
    /// Videos while training; None without prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Memory>,
    /// Encodings, checkpoints and the adapter.
    pub disk_bytes: u64,
}

/// Stages of a run by the names of their keys in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Embedding of the captions.
    Text,
    /// Encoding of the clips.
    Encode,
    /// Training.
    Training,
    /// Videos while training.
    Validation,
    /// Denoising of a video that is made by itself.
    Denoising,
    /// Decoding of it.
    Decoding,
}

impl Stage {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text encoding",
            Self::Encode => "clip encoding",
            Self::Training => "training",
            Self::Validation => "validation",
            Self::Denoising => "denoising",
            Self::Decoding => "decoding",
        }
    }
}

impl Plan {
    /// Returns the stages that the run has.
    pub fn stages(&self) -> Vec<(Stage, Memory)> {
        let stages = [
            (Stage::Text, self.text),
            (Stage::Encode, self.encode),
            (Stage::Training, Some(self.training.memory)),
            (Stage::Validation, self.validation),
        ];
        stages
            .into_iter()
            .filter_map(|(stage, memory)| Some((stage, memory?)))
            .collect()
    }

    /// Returns the stage with the highest peak on the device.
    pub fn largest(&self) -> (Stage, Memory) {
        let largest = self.stages().into_iter().max_by_key(|(_, memory)| memory.peak_bytes);
        largest.unwrap_or((Stage::Training, self.training.memory))
    }
}

/// Part of a plan that has to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All stages.
    Run,
    /// Training alone.
    Training,
}

impl Extent {
    /// Returns its highest peak on the device.
    pub fn peak(self, plan: &Plan) -> u64 {
        match self {
            Self::Run => plan.largest().1.peak_bytes,
            Self::Training => plan.training.memory.peak_bytes,
        }
    }
}

/// Checkpoint and data of a run, as far as a plan needs them.
pub struct Subject<'a> {
    /// The checkpoint's folder.
    pub folder: WeightFolder,
    /// The checkpoint; None if there is a transformer's config alone.
    pub family: Option<&'a dyn Family>,
    /// Clips and buckets in use: (bucket, clips); all of the run file without a survey.
    pub buckets: Vec<(Bucket, usize)>,
    /// Number of captions.
    pub captions: usize,
    /// Place of the computation.
    pub place: Place,
    /// Bytes for the run on the device; None if unknown.
    pub free: Option<u64>,
    /// Processes that train together.
    pub ranks: usize,
    /// Known facts of the checkpoint.
    pub findings: Findings,
}

impl<'a> Subject<'a> {
    /// Takes the buckets that clips fall into, or all of the run file.
    pub fn new(
        config: &RunConfig,
        folder: WeightFolder,
        family: Option<&'a dyn Family>,
        report: Option<&Report>,
        (place, free): (Place, Option<u64>),
    ) -> Self {
        let found = report.map(|report| report.totals().buckets).unwrap_or_default();
        let configured = config
            .datasets
            .iter()
            .flat_map(|set| set.buckets.iter().map(|bucket| (*bucket, 0)));
        Self {
            folder,
            family,
            captions: report.map_or(0, |report| report.samples.len()),
            buckets: if found.is_empty() { configured.collect() } else { found },
            place,
            free,
            ranks: 1,
            findings: Findings::default(),
        }
    }

    /// Sets the number of processes that train together.
    pub fn with_ranks(self, ranks: usize) -> Self {
        Self { ranks, ..self }
    }

    /// Returns the bucket with the most pixels.
    pub fn longest(&self) -> Option<Bucket> {
        let volume = |bucket: &Bucket| bucket.frames.saturating_mul(bucket.height).saturating_mul(bucket.width);
        self.buckets.iter().map(|(bucket, _)| *bucket).max_by_key(volume)
    }

    /// Plans a run with these settings.
    ///
    /// # Errors
    /// Files that cannot be read, or do not fit each other: those of every stage.
    pub fn plan(&self, config: &RunConfig) -> anyhow::Result<Plan> {
        let longest = self.longest().context("datasets: there are no buckets")?;
        let training = self
            .transformer(config)
            .and_then(|transformer| self.training(config, &transformer));
        let of = |family| {
            let text = self.text(config, family);
            let encode = self.coding(config, family, longest, Parts::Encoder);
            (text, encode, self.videos(config, family))
        };
        let (training, text, encode, videos) = match (training, self.family.map(of)) {
            (Ok(training), None) => (training, None, None, Vec::new()),
            (Ok(training), Some((Ok(text), Ok(encode), Ok(videos)))) => (training, Some(text), Some(encode), videos),
            (training, stages) => {
                let mut failed: Vec<anyhow::Error> = training.err().into_iter().collect();
                if let Some((text, encode, videos)) = stages {
                    failed.extend([text.err(), encode.err(), videos.err()].into_iter().flatten());
                }
                let mut all: Vec<String> = failed.into_iter().map(|error| format!("{error:#}")).collect();
                all.dedup();
                bail!(all.join("\n"));
            }
        };
        Ok(Plan {
            device: match self.place {
                Place::Host { .. } => "cpu",
                Place::Gpu => "cuda",
            },
            disk_bytes: self.disk_bytes(config, &training),
            validation: self.validation(config, &training, &videos),
            training,
            text,
            encode,
        })
    }

    /// Returns the transformer, with the adapters that learn.
    pub fn transformer<'c>(&'c self, config: &'c RunConfig) -> anyhow::Result<Transformer<'c>> {
        let spec = registry::of_transformer(&self.folder.part("transformer"))?;
        Ok(Transformer {
            folder: &self.folder,
            has_files: self.family.is_some(),
            family: spec,
            footprint: self.family.map_or(spec.footprint, |family| family.spec().footprint),
            dtype: config.model.dtype.into(),
            quantization: config.model.quantization.form(),
            lora: Some(&config.lora),
            place: self.place,
            ranks: match config.model.sharding {
                Sharding::None => 1,
                Sharding::Full => self.ranks,
            },
            findings: self.findings.clone(),
        })
    }

    fn training(&self, config: &RunConfig, transformer: &Transformer) -> anyhow::Result<Training> {
        let mut most: Option<Training> = None;
        for clips in self.largest_clips(config) {
            let training = training::training(config, transformer, clips, self.free)?;
            let peak = |training: &Training| training.memory.peak_bytes;
            if most.as_ref().is_none_or(|most| peak(most) < peak(&training)) {
                most = Some(training);
            }
        }
        most.context("datasets: there are no buckets")
    }

    /// Returns the micro-batches of which one takes the most. The most pixels mean the most tokens, but for frames that fill a
    /// patch: the three largest buckets are compared.
    fn largest_clips(&self, config: &RunConfig) -> impl Iterator<Item = Clips> {
        let mut buckets: Vec<Bucket> = self.buckets.iter().map(|(bucket, _)| *bucket).collect();
        buckets.sort_by_key(|bucket| std::cmp::Reverse(bucket.frames * bucket.height * bucket.width));
        buckets.dedup();
        let count = config.train.batch_size;
        buckets.into_iter().take(3).map(move |bucket| Clips { bucket, count })
    }

    pub(super) fn text(&self, config: &RunConfig, family: &dyn Family) -> anyhow::Result<Memory> {
        let (dtype, form) = (config.model.dtype.into(), config.model.text_encoder_quantization.form());
        let text = self
            .findings
            .text((dtype, form), || self.text_bytes(family, dtype, form))?;
        Ok(self.memory(config, text.weights, text.activations))
    }

    fn text_bytes(&self, family: &dyn Family, dtype: DType, form: Option<Quantization>) -> anyhow::Result<TextBytes> {
        let folder = family.spec().part("text_encoder")?;
        let weights = self.headers(&folder, dtype)?.quantized(form, EMBEDDINGS);
        let memory = TextMemory::of(&folder, family.spec().text().tokens);
        let unread: Vec<&str> = memory.unread.iter().map(String::as_str).collect();
        let mut weights = weights.needed_bytes(&unread);
        // A second encoder is small, and always there as a whole.
        if family.spec().text_encoder_parts.contains(&SECOND_ENCODER) {
            let second = self
                .headers(&family.spec().part(SECOND_ENCODER)?, dtype)?
                .needed_bytes(&[]);
            weights.whole += second.whole + second.lent;
        }
        Ok(TextBytes {
            weights,
            activations: memory.activation_bytes,
        })
    }

    /// Returns the memory of a part of which blocks may be streamed.
    fn memory(&self, config: &RunConfig, weights: WeightBytes, activations: u64) -> Memory {
        let all = weights.whole + weights.lent;
        let (device, host) = match config.model.offload {
            Offload::Group => (weights.whole + (SLOTS * weights.largest).min(weights.lent), all),
            Offload::None | Offload::Auto | Offload::Model => (all, 0),
        };
        let peak_bytes = device + activations;
        Memory {
            peak_bytes,
            host_bytes: match self.place {
                Place::Host { .. } => peak_bytes,
                Place::Gpu => host,
            },
        }
    }

    /// Returns the bytes in main memory of something that takes so many on the device.
    fn on_host(&self, bytes: u64) -> u64 {
        match self.place {
            Place::Host { .. } => bytes,
            Place::Gpu => 0,
        }
    }

    /// Returns the bytes of the encodings, of checkpoints and of the adapter.
    fn disk_bytes(&self, config: &RunConfig, training: &Training) -> u64 {
        let footprint = config.model.footprint();
        let encodings = footprint.map_or(0, |footprint| {
            let clips = self.buckets.iter().map(|(bucket, count)| {
                footprint.latent_bytes(bucket.frames, bucket.height, bucket.width) * *count as u64
            });
            let bytes = DType::from(config.model.dtype).size_in_bytes();
            clips.sum::<u64>() + footprint.caption_bytes(bytes) * (self.captions as u64 + 1)
        });
        let kept = config.checkpoint.limit as u64 + 1; // the newest is there before the oldest goes
        encodings + kept * (training.adapter_bytes + training.optimizer_bytes) + training.adapter_bytes
    }

    /// Opens the headers of a part.
    fn headers(&self, folder: &WeightFolder, dtype: DType) -> anyhow::Result<Weights> {
        let mut load = Load::headers(dtype, &Device::Cpu).with_header_cache(self.findings.headers());
        load.content = Content::Outlines;
        Weights::read(folder, &load)
    }
}
