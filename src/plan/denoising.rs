//! Memory of a transformer: of a training step, or of a prediction.
//!
//! The transformer is built of outlines ([`Content::Outlines`]), from the headers of its files and its config, with a few
//! of its blocks, and runs on a clip of a few patches and a text of a few tokens. Its own code thereby shows what it takes
//! and releases, and [`Timeline`] tells what that is at the size asked for. Whatever stays between steps is counted.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Tensor, Var};
use serde::Serialize;

use super::blank::{BlankAdapters, BlankLayer};
use super::excerpt::{Excerpt, Representative, representatives};
use super::timeline::{Level, Place, Timeline};
use crate::data::Bucket;
use crate::diffusion::objective;
use crate::lora;
use crate::models::family::FamilySpec;
use crate::models::footprint::Footprint;
use crate::models::registry;
use crate::models::synthetic::{SyntheticBatch, SyntheticRequest};
use crate::nn::flops::Flops;
use crate::nn::load::Content;
use crate::nn::storage::quantize::Quantization;
use crate::nn::weights::BlockBytes;
use crate::nn::{Load, WeightFolder, Weights};
use crate::ops::tape::no_grad;
use crate::process::allocations;
use crate::train::segments::{ActivationBudget, SavedActivations, forward_backward};

/// Patches along the rows of the recorded clips, and along their columns. With a single one, tensors that are permuted
/// might be contiguous all the same, and not be copied.
const ROWS: [usize; 2] = [2, 3];
const COLUMNS: usize = 2;

/// Tokens of the recorded texts.
const TEXT: [usize; 2] = [2, 4];

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
    /// Passes that are known.
    pub recorded: Recorded,
}

/// Passes of one transformer that were recorded once, for plans with several settings.
#[derive(Debug, Clone, Default)]
pub struct Recorded(Rc<RefCell<Vec<KnownPass>>>);

type KnownPass = (Recording, Rc<Denoising>);

/// All that a recorded pass depends on, of one transformer with the same adapters at the same place.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Recording {
    clips: Clips,
    pass: Pass,
    dtype: DType,
    quantization: Option<Quantization>,
    adapted: bool,
}

/// Clips that it runs on at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Clips {
    /// Size of each.
    pub bucket: Bucket,
    /// Number.
    pub count: usize,
}

/// Activations kept between the passes, of every block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retained {
    /// Everything.
    All,
    /// The input, and the outputs of attention.
    Attention,
    /// The input.
    Inputs,
}

impl Retained {
    pub(super) fn saved(self) -> SavedActivations {
        let within = |attention| SavedActivations::Within(ActivationBudget { attention, blocks: 0 });
        match self {
            Self::All => SavedActivations::All,
            Self::Attention => within(usize::MAX),
            Self::Inputs => within(0),
        }
    }
}

/// Work of a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// A prediction without gradients.
    Forward,
    /// Loss and gradients.
    Training(Retained),
}

/// Memory of a transformer at work.
#[derive(Debug, Clone)]
pub struct Denoising {
    /// Weights of each block, and of all together.
    pub blocks: Vec<BlockBytes>,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Numbers of each matrix of the adapters.
    pub adapters: Vec<usize>,
    /// Bytes of the input and the target.
    pub input_bytes: u64,
    /// Level over weights, adapters and input.
    pub level: Level,
    /// Bytes that the pass keeps of a block that others are like, in the forward pass; of the first one, if none is.
    pub block_keeps: f64,
}

/// Patches of a clip's frame, and tokens of its text, that are asked for.
#[derive(Debug, Clone, Copy)]
struct Tokens {
    clip: f64,
    text: f64,
}

/// One recorded run.
struct Run {
    entries: Vec<allocations::Entry>,
    wanted: Tokens,
    weights: Weights,
    layers: Vec<BlankLayer>,
    blocks: Vec<Representative>,
    input_bytes: f64,
}

impl Transformer<'_> {
    /// Returns the memory of a pass on these clips.
    ///
    /// # Errors
    /// Fails for an unreadable config, headers that do not fit it, `lora.target_modules` that name no layer, and a bucket
    /// that does not divide into patches.
    pub fn memory(&self, clips: Clips, pass: Pass) -> anyhow::Result<Rc<Denoising>> {
        let recording = Recording {
            clips,
            pass,
            dtype: self.dtype,
            quantization: self.quantization,
            adapted: self.lora.is_some(),
        };
        let known = self.recorded.0.borrow();
        if let Some((_, known)) = known.iter().find(|(known, _)| *known == recording) {
            return Ok(known.clone());
        }
        drop(known);
        let memory = Rc::new(self.record(clips, pass)?);
        self.recorded.0.borrow_mut().push((recording, memory.clone()));
        Ok(memory)
    }

    fn record(&self, clips: Clips, pass: Pass) -> anyhow::Result<Denoising> {
        let run = |rows: usize, text: usize| self.run(clips, pass, [rows, text]);
        let runs = [run(ROWS[0], TEXT[0])?, run(ROWS[1], TEXT[0])?, run(ROWS[0], TEXT[1])?];
        let wanted = runs[0].wanted;
        let along = |[from, to]: [usize; 2], wanted: f64| (wanted - from as f64) / (to - from) as f64;
        let clip = along(ROWS.map(|rows| rows * COLUMNS), wanted.clip);
        let text = along(TEXT, wanted.text);
        let weights = [1.0 - clip - text, clip, text];
        let input_bytes: f64 = runs
            .iter()
            .zip(weights)
            .map(|(run, weight)| run.input_bytes * weight)
            .sum();
        let records: Vec<_> = runs
            .iter()
            .zip(weights)
            .map(|(run, weight)| (&run.entries[..], weight))
            .collect();
        let timeline = Timeline::new(&records, self.place)?;
        let [base, _, _] = runs;
        let typical = base.blocks.iter().position(|block| block.more > 0).unwrap_or(0);
        Ok(Denoising {
            weight_bytes: base.weights.bytes() as u64,
            blocks: base.weights.blocks(),
            adapters: base
                .layers
                .iter()
                .flat_map(|layer| [layer.a.elem_count(), layer.b.elem_count()])
                .collect(),
            input_bytes: input_bytes as u64,
            level: timeline.repeated(&base.blocks).level(),
            block_keeps: timeline.left_by(typical + 1),
        })
    }

    /// Returns the operations of a sample of so many rows of patches, and how many rows of that width the bucket has.
    ///
    /// # Errors
    /// Same as [`memory`](Self::memory).
    pub fn work(&self, clips: Clips, rows: usize) -> anyhow::Result<(Flops, f64)> {
        let request = SyntheticRequest {
            weights: self.weights(None)?,
            bucket: clips.bucket,
            batch: 1,
            footprint: self.footprint,
            frame_rate: self.family.frame_rate,
            patches: Some([rows, COLUMNS]),
            text_tokens: None,
            fewer: None,
        };
        let batch = (self.family.synthetic)(&self.folder.part("transformer"), request)?;
        let wanted = batch.patches.iter().product::<usize>() as f64 / COLUMNS as f64;
        Ok((batch.work, wanted))
    }

    /// Records a pass at a small size.
    fn run(&self, clips: Clips, pass: Pass, [rows, text]: [usize; 2]) -> anyhow::Result<Run> {
        let adapters = self
            .lora
            .map(|lora| BlankAdapters::new(lora, &registry::names(), &Device::Cpu));
        let adapters = adapters.transpose()?.map(Arc::new);
        let weights = self.weights(adapters.clone())?;
        let request = SyntheticRequest {
            weights: weights.clone(),
            bucket: clips.bucket,
            batch: clips.count,
            footprint: self.footprint,
            frame_rate: self.family.frame_rate,
            patches: Some([rows, COLUMNS]),
            text_tokens: Some(text),
            fewer: None,
        };
        let batch = (self.family.synthetic)(&self.folder.part("transformer"), request)?;
        let layers = adapters.as_ref().map(|adapters| adapters.layers()).unwrap_or_default();
        let blocks = representatives(&weights.blocks(), &layers);
        let vars: Vec<Var> = layers
            .iter()
            .flat_map(|layer| [layer.a.clone(), layer.b.clone()])
            .collect();
        Ok(Run {
            input_bytes: input_bytes(&batch) as f64,
            entries: recorded(&batch, &blocks, &vars, pass)?,
            wanted: Tokens {
                clip: batch.patches.iter().product::<usize>() as f64,
                text: self.footprint.text.tokens as f64,
            },
            weights,
            layers,
            blocks,
        })
    }

    /// Returns outlines of the weights.
    fn weights(&self, adapters: Option<Arc<BlankAdapters>>) -> anyhow::Result<Weights> {
        let mut load = Load::new(self.dtype, &Device::Cpu);
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

/// Runs a pass and returns what it allocated.
fn recorded(
    batch: &SyntheticBatch,
    blocks: &[Representative],
    vars: &[Var],
    pass: Pass,
) -> anyhow::Result<Vec<allocations::Entry>> {
    let excerpt = Excerpt {
        whole: &*batch.denoiser,
        blocks,
    };
    let loss = |prediction: &Tensor| objective::loss(prediction, &batch.target, None);
    match pass {
        Pass::Forward => {
            use crate::models::denoiser::Denoiser;
            let (predicted, entries) = allocations::record(|| no_grad(|| excerpt.forward(&batch.input)));
            predicted.map(drop)?;
            Ok(entries)
        }
        Pass::Training(kept) => {
            let saved = kept.saved();
            let (passed, entries) =
                allocations::record(|| forward_backward(&excerpt, &batch.input, &loss, vars, saved));
            passed.map(drop).context("the plan of a training step")?;
            Ok(entries)
        }
    }
}

/// Returns the bytes of a batch.
fn input_bytes(batch: &SyntheticBatch) -> usize {
    let input = &batch.input;
    let tensors = [&input.latents, &input.text.hidden, &batch.target];
    let optional = [&input.image, &input.text.pooled, &input.text.mask];
    let all = tensors.into_iter().chain(optional.into_iter().flatten());
    all.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes())
        .sum()
}
