//! Time of a training step, from a calibration of a few seconds.
//!
//! One block of the model, with random weights and its own adapters, trains on as many tokens as take about a second. The
//! time of its products and of what comes between them grows with the tokens, that of attention with their square, at the
//! throughput of attention that is measured apart:
//!
//! ```text
//! step = passes ((linear / linear of the block) (time of the block - its attention) + attention of the step)
//! ```

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
use crate::diffusers_config;
use crate::diffusion::objective;
use crate::models::registry;
use crate::models::synthetic::{SyntheticBatch, SyntheticRequest};
use crate::nn::flops::Flops;
use crate::nn::{Load, Weights};
use crate::ops::attention::attention;
use crate::train::segments::forward_backward;

/// Keys of configs that count blocks.
const COUNTS: [&str; 2] = ["num_layers", "num_single_layers"];

/// Blocks of the model that is timed.
const BLOCKS: u64 = 1;

/// Seconds that it may take until it is timed for the last time.
const SECONDS: f64 = 1.0;

/// Rows and columns of patches of the clip that is timed.
const PATCHES: [usize; 2] = [6, 6];

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
    let folder = one_block(&transformer)?;
    let small = Small::new(&transformer, config, folder.path(), device)?;
    let seconds = small.seconds(device)?;
    let rate = attention_rate(device, transformer.dtype)?;
    let work = whole_work(&transformer, clips)?;
    let own_attention = small.batch.work.attention * 3.5 / rate;
    let of_products = (seconds - own_attention).max(seconds * 0.2) / (small.batch.work.linear * 2.0);
    let again = match super::training::kept(config) {
        Some(Retained::All) => Flops::default(),
        Some(Retained::Attention) | None => Flops { attention: 0.0, ..work },
        Some(Retained::Inputs) => work,
    };
    let products = of_products * (work.linear * 2.0 + again.linear);
    let attention = (work.attention * 3.5 + again.attention) / rate;
    let step_seconds = (products + attention) * (clips.count * config.train.gradient_accumulation_steps) as f64;
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

/// Writes the transformer's config with a single block to a folder.
fn one_block(transformer: &Transformer) -> anyhow::Result<tempfile::TempDir> {
    let path = transformer.folder.part("transformer").join("config.json");
    let mut config: Value = serde_json::from_str(&diffusers_config::text(&path)?).context("not JSON")?;
    for key in COUNTS {
        if let Some(count) = config.get_mut(key) {
            *count = BLOCKS.into();
        }
    }
    if let Some(config) = config.as_object_mut() {
        config.remove("quantization_config");
    }
    let folder = tempfile::tempdir().context("the folder for temporary files")?;
    std::fs::write(folder.path().join("config.json"), config.to_string())?;
    Ok(folder)
}

/// The model that is timed.
struct Small {
    batch: SyntheticBatch,
    vars: Vec<Var>,
}

impl Small {
    fn new(transformer: &Transformer, config: &RunConfig, folder: &Path, device: &Device) -> anyhow::Result<Self> {
        let adapters = std::sync::Arc::new(BlankAdapters::new(&config.lora, &registry::names(), device)?);
        let load = Load::new(transformer.dtype, device).with_adapters(adapters.clone());
        let dense = transformer.family.dense_modules.of(transformer.quantization);
        let request = SyntheticRequest {
            weights: Weights::random(&load).quantized(transformer.quantization, &dense),
            bucket: crate::data::Bucket::from([1, 256, 256]),
            batch: 1,
            footprint: transformer.footprint,
            frame_rate: transformer.family.frame_rate,
            patches: Some(PATCHES),
            text_tokens: Some(transformer.footprint.text.tokens),
        };
        let batch = (transformer.family.synthetic)(folder, request)?;
        let layers = adapters.layers();
        let vars = layers
            .iter()
            .flat_map(|layer| [layer.a.clone(), layer.b.clone()])
            .collect();
        Ok(Self { batch, vars })
    }

    /// Returns the least time of a forward and a backward pass.
    fn seconds(&self, device: &Device) -> anyhow::Result<f64> {
        let loss = |prediction: &Tensor| objective::loss(prediction, &self.batch.target, None);
        let began = Instant::now();
        let mut least = f64::INFINITY;
        loop {
            let started = Instant::now();
            let kept = Retained::All.saved();
            drop(forward_backward(
                &*self.batch.denoiser,
                &self.batch.input,
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
    let at = |rows: usize| transformer.work(clips, rows);
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
