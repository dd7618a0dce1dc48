//! Memory of a transformer: of a training step, or of a prediction.
//!
//! The transformer is built of outlines ([`Content::Outlines`]), from the headers of its files and its config, with a few
//! of its blocks, and runs on a clip of a few patches and a text of a few tokens. Its own code thereby shows what it takes
//! and releases, and [`Timeline`] tells what that is at the size asked for. Whatever stays between steps is counted.

use std::rc::Rc;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::blank::BlankAdapters;
use super::findings::{Findings, ModelKey, PassKey, SizeKey};
use super::outlined::{Outlined, RecordedClips, record_all};
pub use super::passes::{Clips, Denoising, Holdings, Pass, Retained};
use super::sizes::{PassSize, RecordedSizes};
use super::timeline::{Place, Timeline};
use crate::lora;
use crate::models::family::FamilySpec;
use crate::models::footprint::Footprint;
use crate::models::registry;
use crate::models::synthetic::{PatchGrid, SyntheticRequest, SyntheticSpec};
use crate::nn::flops::Flops;
use crate::nn::load::Content;
use crate::nn::storage::quantize::Quantization;
use crate::nn::{Load, WeightFolder, Weights};

/// A transformer, known from its config and the headers of its files.
#[derive(Debug, Clone)]
pub struct Transformer<'a> {
    /// Folder of the checkpoint.
    pub folder: &'a WeightFolder,
    /// False if there is a config alone.
    pub has_files: bool,
    /// Its family.
    pub family: &'static FamilySpec,
    /// Sizes of the checkpoint's encodings.
    pub footprint: Footprint,
    /// Number format of the weights.
    pub dtype: DType,
    /// Form that its matrices are stored in as they are read.
    pub quantization: Option<Quantization>,
    /// Adapters that learn.
    pub lora: Option<&'a lora::Config>,
    /// Place where it runs.
    pub place: Place,
    /// Ranks that share its blocks; 1 if each has all of them.
    pub ranks: usize,
    /// Known facts of it.
    pub findings: Findings,
}

impl Transformer<'_> {
    /// Returns the memory of a pass on these clips.
    ///
    /// # Errors
    /// Fails for an unreadable config, headers that do not fit it, `lora.target_modules` that name no layer, and a bucket
    /// that does not divide into patches.
    pub fn memory(&self, clips: Clips, pass: Pass) -> anyhow::Result<Rc<Denoising>> {
        let model = self.key();
        let add_up = || self.add_up(clips, pass);
        self.findings.denoising(SizeKey { model, pass, clips }, add_up)
    }

    /// Records a pass at several small sizes, unless it was, and adds them up.
    fn add_up(&self, clips: Clips, pass: Pass) -> anyhow::Result<Denoising> {
        let spec = self.spec()?;
        let PatchGrid { frames, depth, patches } = spec.grid(clips.bucket, &self.footprint)?;
        let size = PassSize {
            frames,
            patches: patches.iter().product(),
            text: self.footprint.text.tokens,
            rank: self.rank(),
        };
        let sizes = RecordedSizes::of(size, depth);
        let model = self.model(&spec, RecordedSizes::lowest_rank(size.rank))?;
        let key = PassKey {
            dtype: self.dtype,
            adapted: self.lora.is_some(),
            forms: model.forms.clone(),
            pass,
            count: clips.count,
            sizes,
        };
        let recorded_clips = RecordedClips {
            count: clips.count,
            depth,
            frame_rate: self.family.frame_rate,
        };
        let record = || {
            let all = sizes.all().into_iter();
            let models = all.map(|size| Ok((self.model(&spec, size.rank)?, size)));
            let models = models.collect::<anyhow::Result<Vec<_>>>()?;
            let models: Vec<_> = models.iter().map(|(model, size)| (&**model, *size)).collect();
            let place = self.place;
            record_all(&models, |model, size| model.record(pass, size, recorded_clips, place))
        };
        let (passes, weights) = (self.findings.passes(key, record)?, sizes.weights(size));
        let sum = passes.iter().zip(&weights);
        let input_bytes: f64 = sum.clone().map(|(pass, weight)| pass.input_bytes * weight).sum();
        let timeline = Timeline::new(sum.map(|(pass, weight)| (&pass.record, *weight)))?;
        Ok(Denoising {
            held: self.holdings(&model),
            input_bytes: input_bytes as u64,
            level: timeline.repeated(&model.shown).level(),
            block_keeps: timeline.left_by(model.typical_part()),
        })
    }

    /// Returns what it holds, without running it.
    ///
    /// # Errors
    /// Same as [`memory`](Self::memory), but for the bucket.
    pub fn held(&self) -> anyhow::Result<Holdings> {
        let lowest = RecordedSizes::lowest_rank(self.rank());
        Ok(self.holdings(&*self.model(&self.spec()?, lowest)?))
    }

    fn holdings(&self, model: &Outlined) -> Holdings {
        let rank = self.rank();
        let sides = model.layers.iter().flat_map(|layer| layer.features);
        Holdings {
            blocks: model.blocks.clone(),
            weight_bytes: model.weight_bytes,
            adapters: sides.map(|features| features * rank).collect(),
        }
    }

    /// Returns the operations of a sample of so many rows of patches, and how many rows of that width the bucket has.
    ///
    /// # Errors
    /// Same as [`memory`](Self::memory).
    pub fn work(&self, clips: Clips, [rows, columns]: [usize; 2]) -> anyhow::Result<(Flops, f64)> {
        let spec = self.spec()?;
        let grid = spec.grid(clips.bucket, &self.footprint)?;
        let transformer = &self.model(&spec, RecordedSizes::lowest_rank(self.rank()))?.transformer;
        let drawn = transformer.draw(&SyntheticRequest {
            grid: PatchGrid {
                patches: [rows, columns],
                ..grid
            },
            batch: 1,
            frame_rate: self.family.frame_rate,
            text_tokens: None,
        })?;
        let there = grid.patches.iter().product::<usize>() as f64 / columns as f64;
        Ok((transformer.flops(&drawn.input)?, there))
    }

    fn spec(&self) -> anyhow::Result<SyntheticSpec> {
        (self.family.synthetic)(&self.folder.part("transformer"))
    }

    fn key(&self) -> ModelKey {
        ModelKey {
            dtype: self.dtype,
            quantization: self.quantization,
            adapted: self.lora.is_some(),
        }
    }

    /// Returns the rank of the adapters; 0 without any.
    fn rank(&self) -> usize {
        self.lora.map_or(0, |lora| lora.rank)
    }

    /// Returns the model with adapters of this rank.
    fn model(&self, spec: &SyntheticSpec, rank: usize) -> anyhow::Result<Rc<Outlined>> {
        self.findings.model((self.key(), rank), || {
            let adapters = self
                .lora
                .map(|lora| BlankAdapters::new(lora, rank, &registry::names(), &Device::Cpu));
            let adapters = adapters.transpose()?.map(Arc::new);
            let weights = self.weights(adapters.clone())?;
            let transformer = spec.transformer(weights.clone())?;
            let layers = adapters.map(|adapters| adapters.layers()).unwrap_or_default();
            Ok(Outlined::new(transformer, &weights, layers))
        })
    }

    /// Returns outlines of the weights.
    fn weights(&self, adapters: Option<Arc<BlankAdapters>>) -> anyhow::Result<Weights> {
        let mut load = Load::new(self.dtype, &Device::Cpu).with_header_cache(self.findings.headers());
        load.content = Content::Outlines;
        if let Some(adapters) = adapters {
            load = load.with_adapters(adapters);
        }
        let weights = match self.has_files {
            true => Weights::read(&self.folder.part("transformer"), &load)?,
            false => Weights::random(&load),
        };
        let dense = self.family.dense_modules.of(self.quantization);
        Ok(weights.quantized(self.quantization, &dense))
    }
}
