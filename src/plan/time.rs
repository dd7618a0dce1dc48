//! Time of a training step, from a calibration of a few seconds.
//!
//! One block of each kind, with random weights and its own adapters, trains on few tokens, and on more. Part of its time is the
//! same for both: its matrices are decoded, or turned to f32, once on the way there and once on the way back. The rest grows with
//! the operations of its products; the time of attention, at a throughput that is measured apart, with its own.
//!
//! ```text
//! time of the blocks - their attention = fixed + rate * linear        at both numbers of tokens
//! step = passes (blocks / timed blocks * fixed + clips (embedding + rate * linear of the step + attention of the step))
//! ```
//!
//! The embedding, most of which is that of the text, is timed by itself.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use candle_core::{DType, Device, Tensor, Var};
use serde::Serialize;
use serde_json::Value;

use super::blank::BlankAdapters;
use super::denoising::{Clips, Retained, Transformer};
use super::{Plan, Subject};
use crate::config::RunConfig;
use crate::data::Bucket;
use crate::diffusers_config;
use crate::diffusion::objective;
use crate::models::denoiser::Input;
use crate::models::registry;
use crate::models::synthetic::{PatchGrid, SyntheticInput, SyntheticRequest, SyntheticTransformer};
use crate::nn::flops::Flops;
use crate::nn::{Load, Weights};
use crate::ops::attention::attention;
use crate::ops::tape::no_grad;
use crate::train::segments::forward_backward;

/// Keys of configs that count blocks.
const COUNTS: [&str; 2] = ["num_layers", "num_single_layers"];

/// Blocks of the model that is timed.
const BLOCKS: u64 = 1;

/// Seconds that each may take until it is timed for the last time.
const SECONDS: f64 = 0.6;

/// Frames, rows and columns of the clips that are timed, before their patches are others.
const BUCKET: [usize; 3] = [1, 256, 256];

/// Rows and columns of patches of the clips that are timed.
const FEW_PATCHES: [usize; 2] = [2, 2];
const MORE_PATCHES: [usize; 2] = [12, 12];

/// Part of the text that the first of them has.
const LESS_TEXT: usize = 8;

/// Columns of patches of the clips whose operations are counted.
const WORK_COLUMNS: usize = 2;

/// Tokens, heads and features of the attention that is timed.
const ATTENTION: [usize; 3] = [1536, 4, 64];

/// Time of training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Time {
    /// Seconds of an optimiser step.
    pub step_seconds: f64,
    /// Seconds of all steps.
    pub total_seconds: f64,
    /// Number of steps.
    pub steps: u64,
}

/// Measures this machine, and returns the time of a run as planned.
///
/// # Errors
/// Those of the transformer's config.
pub fn time(subject: &Subject, config: &RunConfig, plan: &Plan, device: &Device) -> anyhow::Result<Time> {
    let transformer = subject.transformer(config)?;
    let clips = plan.training.clips;
    let (folder, blocks) = few_blocks(&transformer)?;
    let rate = attention_rate(device, transformer.dtype)?;
    let [few, more] = Small::new(&transformer, config, folder.path(), device)?.timed(device, rate)?;
    let (fixed, of_products) = line(few, more);
    let work = whole_work(&transformer, clips)?;
    let again = match super::training::kept(config) {
        Some(Retained::All) => Flops::default(),
        Some(Retained::Attention) | None => Flops { attention: 0.0, ..work },
        Some(Retained::Inputs) => work,
    };
    let products = of_products * (work.linear * 2.0 + again.linear);
    let attention = (work.attention * 3.5 + again.attention) / rate;
    // There and back, and there again.
    let fixed = fixed * blocks * if again.linear > 0.0 { 1.5 } else { 1.0 };
    let passes = config.train.gradient_accumulation_steps as f64;
    let step_seconds = passes * (fixed + clips.count as f64 * (more.embedding + products + attention));
    let clips_per_epoch: usize = subject.buckets.iter().map(|(_, count)| *count).sum();
    let steps = config
        .train
        .total_steps(clips_per_epoch.div_ceil(config.train.batch_size.max(1)), 1) as u64;
    Ok(Time {
        step_seconds,
        total_seconds: step_seconds * steps as f64,
        steps,
    })
}

/// Time of a pass through blocks without attention, at so many operations of products.
#[derive(Debug, Clone, Copy)]
struct Timed {
    /// Seconds of the embedding before them.
    embedding: f64,
    seconds: f64,
    linear: f64,
}

/// Returns the fixed time, and the time of an operation, of which two timed passes consist.
fn line(few: Timed, more: Timed) -> (f64, f64) {
    let slope = (more.seconds - few.seconds) / (more.linear - few.linear).max(1.0);
    // On a machine that is busy, more may have taken no longer than few.
    let slope = slope.clamp(
        more.seconds * 0.2 / more.linear.max(1.0),
        more.seconds / more.linear.max(1.0),
    );
    ((more.seconds - slope * more.linear).max(0.0), slope)
}

/// Writes the transformer's config with a block of each kind to a folder; returns that, and how many times as many blocks the
/// transformer has.
fn few_blocks(transformer: &Transformer) -> anyhow::Result<(tempfile::TempDir, f64)> {
    let path = transformer.folder.part("transformer").join("config.json");
    let mut config: Value = serde_json::from_str(&diffusers_config::text(&path)?).context("not JSON")?;
    let (mut all, mut timed) = (0, 0);
    for key in COUNTS {
        if let Some(count) = config.get_mut(key) {
            all += count.as_u64().unwrap_or(BLOCKS);
            timed += BLOCKS;
            *count = BLOCKS.into();
        }
    }
    if let Some(config) = config.as_object_mut() {
        config.remove("quantization_config");
    }
    let folder = tempfile::tempdir().context("the folder for temporary files")?;
    std::fs::write(folder.path().join("config.json"), config.to_string())?;
    Ok((folder, all as f64 / timed.max(1) as f64))
}

/// The model that is timed.
struct Small {
    transformer: SyntheticTransformer,
    /// Few tokens, and more, with the operations of each.
    inputs: [(Flops, SyntheticInput); 2],
    vars: Vec<Var>,
}

impl Small {
    fn new(transformer: &Transformer, config: &RunConfig, folder: &Path, device: &Device) -> anyhow::Result<Self> {
        let rank = config.lora.rank;
        let adapters = std::sync::Arc::new(BlankAdapters::new(&config.lora, rank, &registry::names(), device)?);
        let load = Load::new(transformer.dtype, device).with_adapters(adapters.clone());
        let dense = transformer.family.dense_modules.of(transformer.quantization);
        let weights = Weights::random(&load).quantized(transformer.quantization, &dense);
        let spec = (transformer.family.synthetic)(folder)?;
        let grid = spec.grid(Bucket::from(BUCKET), &transformer.footprint)?;
        let small = spec.transformer(weights)?;
        let draw = |patches, text_tokens| {
            let drawn = small.draw(&SyntheticRequest {
                grid: PatchGrid { patches, ..grid },
                batch: 1,
                frame_rate: transformer.family.frame_rate,
                text_tokens: Some(text_tokens),
            })?;
            anyhow::Ok((small.flops(&drawn.input)?, drawn))
        };
        let text = transformer.footprint.text.tokens;
        let inputs = [draw(FEW_PATCHES, (text / LESS_TEXT).max(1))?, draw(MORE_PATCHES, text)?];
        let layers = adapters.layers();
        let vars = layers
            .iter()
            .flat_map(|layer| [layer.a.clone(), layer.b.clone()])
            .collect();
        Ok(Self {
            inputs,
            transformer: small,
            vars,
        })
    }

    /// Returns the least times of passes there and back, of few tokens and of more; attention has this throughput.
    fn timed(&self, device: &Device, attention_rate: f64) -> anyhow::Result<[Timed; 2]> {
        let timed = self.inputs.each_ref().map(|(work, SyntheticInput { input, target })| {
            let seconds = self.seconds(input, target, device)?;
            let embedding = self.embedding_seconds(input, device)?;
            let attention = work.attention * 3.5 / attention_rate;
            anyhow::Ok(Timed {
                embedding,
                seconds: (seconds - embedding - attention).max(seconds * 0.2),
                linear: work.linear * 2.0,
            })
        });
        let [few, more] = timed;
        Ok([few?, more?])
    }

    /// Returns the least time of embedding an input, of two times.
    fn embedding_seconds(&self, input: &Input, device: &Device) -> anyhow::Result<f64> {
        let mut least = f64::INFINITY;
        for _ in 0..2 {
            let started = Instant::now();
            drop(no_grad(|| self.transformer.denoiser().embed(input))?);
            device.synchronize()?;
            least = least.min(started.elapsed().as_secs_f64());
        }
        Ok(least)
    }

    /// Returns the least time of a forward and a backward pass.
    fn seconds(&self, input: &Input, target: &Tensor, device: &Device) -> anyhow::Result<f64> {
        let loss = |prediction: &Tensor| objective::loss(prediction, target, None);
        let began = Instant::now();
        let mut least = f64::INFINITY;
        loop {
            let started = Instant::now();
            let kept = Retained::All.saved();
            drop(forward_backward(
                self.transformer.denoiser(),
                input,
                &loss,
                &self.vars,
                kept,
            )?);
            device.synchronize()?;
            least = least.min(started.elapsed().as_secs_f64());
            if began.elapsed().as_secs_f64() > SECONDS {
                return Ok(least);
            }
        }
    }
}

/// Returns the operations a second of attention's forward pass.
fn attention_rate(device: &Device, dtype: DType) -> anyhow::Result<f64> {
    let [tokens, heads, width] = ATTENTION;
    let q = Tensor::zeros((1, tokens, heads, width), dtype, device)?;
    let work = 4.0 * (tokens * tokens * heads * width) as f64;
    let (began, mut least) = (Instant::now(), f64::INFINITY);
    while began.elapsed().as_secs_f64() < SECONDS / 2.0 || least.is_infinite() {
        let started = Instant::now();
        drop(attention(&q, &q, &q, None)?);
        device.synchronize()?;
        least = least.min(started.elapsed().as_secs_f64());
    }
    Ok(work / least)
}

/// Returns the operations of a sample of these clips: a polynomial of the second degree in the patches, found at three
/// small numbers of them.
fn whole_work(transformer: &Transformer, clips: Clips) -> anyhow::Result<Flops> {
    let at = |rows: usize| transformer.work(clips, [rows, WORK_COLUMNS]);
    let [a, b, c] = [at(2)?, at(3)?, at(4)?];
    let wanted = a.1;
    let weights = [
        (wanted - 3.0) * (wanted - 4.0) / 2.0,
        -(wanted - 2.0) * (wanted - 4.0),
        (wanted - 2.0) * (wanted - 3.0) / 2.0,
    ];
    let works = [a.0, b.0, c.0];
    let sum = |of: fn(&Flops) -> f64| works.iter().zip(weights).map(|(work, weight)| of(work) * weight).sum();
    Ok(Flops {
        linear: sum(|work| work.linear),
        attention: sum(|work| work.attention),
    })
}
