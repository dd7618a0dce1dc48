//! Compares tiny transformers on a GPU with the CPU: training steps from the same start, with random weights.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Tensor, Var};

use super::row::{Row, difference};
use crate::data::Bucket;
use crate::diffusion::objective;
use crate::lora;
use crate::lora::trainable::Trainable;
use crate::models::registry;
use crate::models::synthetic::SyntheticBatch;
use crate::nn::dropout::Seed;
use crate::nn::{Load, Weights};
use crate::ops::attention::way::{self, Ran};
use crate::ops::tape::no_grad;
use crate::optim::adamw::{AdamW, Config};
use crate::optim::clip;
use crate::rng::Rng;
use crate::train::memory;
use crate::train::segments::{ActivationPolicy, FreeMemory, SavedActivations, forward_backward};

const LEARNING_RATE: f64 = 1e-2;

/// Extent of the training.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub steps: usize,
    /// Buckets, of which the first that a checkpoint supports is used: some have positions for a single size.
    pub buckets: [[usize; 3]; 3],
}

impl Extent {
    pub const FULL: Self = Self {
        steps: 20,
        buckets: [[17, 96, 128], [9, 32, 48], [9, 64, 96]],
    };

    /// A short run, to test the command.
    pub const QUICK: Self = Self {
        steps: 3,
        buckets: [[9, 32, 48], [9, 64, 96], [17, 96, 128]],
    };
}
const POLICIES: [ActivationPolicy; 5] = [
    ActivationPolicy::Auto,
    ActivationPolicy::All,
    ActivationPolicy::InputsAndAttention,
    ActivationPolicy::Inputs,
    ActivationPolicy::Offloaded,
];

/// Compares the prediction, and the largest error of the losses, with dropout in the adapters.
pub fn compare(folder: &Path, name: &str, device: &Device, extent: Extent, dropout: f64) -> anyhow::Result<Vec<Row>> {
    let bucket = bucket(folder, extent)?;
    let theirs = Model::open(folder, bucket, &Load::new(DType::F32, &Device::Cpu), dropout)?.train(extent.steps)?;
    let mut rows = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let ours = Model::open(folder, bucket, &Load::new(dtype, device), dropout)?.train(extent.steps)?;
        let furthest = ours.losses.iter().zip(&theirs.losses);
        let furthest = furthest.map(|(ours, theirs)| (ours - theirs).abs() / theirs.abs());
        let (prediction, losses) = match dtype {
            DType::F32 => (1e-4, 1e-3),
            _ => (3e-2, 2e-2),
        };
        let with = if dropout > 0.0 { " with dropout" } else { "" };
        if dropout == 0.0 {
            rows.push(Row {
                what: format!("{name} prediction {dtype:?}"),
                error: difference(&ours.prediction, &theirs.prediction)?,
                most: prediction,
                attention: ours.attention.clone(),
            });
        }
        rows.push(Row {
            what: format!("{name} {} training losses{with} {dtype:?}", extent.steps),
            // `max` would lose NaN.
            error: furthest.fold(
                0.0,
                |most, error| if error > most || error.is_nan() { error } else { most },
            ),
            most: losses,
            attention: ours.attention,
        });
    }
    Ok(rows)
}

/// Compares the gradients of one step under every `train.activation_policy` with the CPU's, which keeps everything.
pub fn policies(folder: &Path, name: &str, device: &Device, extent: Extent) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let bucket = bucket(folder, extent)?;
    let theirs =
        Model::open(folder, bucket, &Load::new(DType::F32, &Device::Cpu), 0.0)?.gradients(SavedActivations::All)?;
    for dtype in [DType::F32, DType::BF16] {
        let model = Model::open(folder, bucket, &Load::new(dtype, device), 0.0)?;
        for policy in POLICIES {
            way::take();
            let ours = model.gradients(policy.saved_activations(FreeMemory::of(device, memory::free(device))))?;
            let policy = serde_json::to_string(&policy)?;
            rows.push(Row {
                what: format!("{name} gradients, keep: {} {dtype:?}", policy.trim_matches('"')),
                error: difference(&ours, &theirs)?,
                most: if dtype == DType::F32 { 1e-4 } else { 5e-2 },
                attention: way::take(),
            });
        }
    }
    Ok(rows)
}

/// Returns the bucket for a checkpoint.
pub fn bucket(folder: &Path, extent: Extent) -> anyhow::Result<Bucket> {
    let runs = |bucket: Bucket| -> anyhow::Result<Bucket> {
        let batch = registry::open_synthetic(folder, Weights::random(&Load::new(DType::F32, &Device::Cpu)), bucket, 1)?;
        batch.denoiser.forward(&batch.input)?;
        Ok(bucket)
    };
    let [first, second, third] = extent.buckets.map(Bucket::from);
    runs(first).or_else(|_| runs(second)).or_else(|_| runs(third))
}

/// A tiny transformer with adapters.
pub struct Model {
    batch: SyntheticBatch,
    weights: Weights,
    vars: Vec<Var>,
    dropout: Seed,
}

/// Result of the training.
pub struct Trained {
    /// Prediction before the first step.
    pub prediction: Tensor,
    pub losses: Vec<f64>,
    /// Numbers of all adapters after the last step.
    pub adapters: Tensor,
    /// Bytes of streamed blocks in memory at most; None if there are none.
    pub block_bytes: Option<usize>,
    pub attention: Vec<Ran>,
}

impl Model {
    pub fn open(folder: &Path, bucket: Bucket, load: &Load, dropout: f64) -> anyhow::Result<Self> {
        let config = lora::Config {
            rank: 4,
            alpha: 4.0,
            dropout,
            ..lora::Config::default()
        };
        let trainable = Arc::new(Trainable::new(&config, &[], Rng::new(0), &load.device)?);
        let form = load.quantization.transformer;
        let family = registry::of_transformer(&folder.join("transformer"))?;
        let weights = Weights::random(&load.with_adapters(trainable.clone()));
        let weights = weights.quantized(form, &family.dense_modules.of(form));
        let batch = registry::open_synthetic(folder, weights.clone(), bucket, 1)?;
        let pairs = trainable.finish()?.into_iter();
        Ok(Self {
            batch,
            weights,
            vars: pairs.flat_map(|pair| [pair.a, pair.b]).collect(),
            dropout: trainable.dropout(),
        })
    }

    /// Returns the loss, and the gradients of all variables.
    fn pass(&self, saved: SavedActivations) -> anyhow::Result<(Tensor, Vec<Tensor>)> {
        let SyntheticBatch {
            denoiser,
            input,
            target,
            ..
        } = &self.batch;
        let loss = |prediction: &Tensor| objective::loss(prediction, target, None);
        let passed = forward_backward(&**denoiser, input, &loss, &self.vars, saved)?;
        let gradients: Option<Vec<Tensor>> = passed.gradients.into_iter().collect();
        Ok((passed.loss, gradients.context("an adapter without a gradient")?))
    }

    /// Concatenates all gradients, with adapters away from their start, where half of the gradients would be 0.
    fn gradients(&self, saved: SavedActivations) -> anyhow::Result<Tensor> {
        let mut rng = Rng::new(1);
        for var in &self.vars {
            let numbers = rng.randn(var.elem_count());
            var.set(&(Tensor::from_vec(numbers, var.shape(), var.device())? * 0.1)?)?;
        }
        let (_, gradients) = self.pass(saved)?;
        Ok(flat(&gradients)?)
    }

    pub fn train(self, steps: usize) -> anyhow::Result<Trained> {
        let mut optimiser = AdamW::new(self.vars.clone(), &Config::default())?;
        way::take();
        let prediction = no_grad(|| self.batch.denoiser.forward(&self.batch.input))?;
        let mut losses = Vec::new();
        for step in 0..steps {
            self.dropout.set(Some(step as u64));
            let (loss, gradients) = self.pass(ActivationPolicy::Inputs.saved_activations(FreeMemory::Unknown))?;
            let norm = clip::global_norm(&gradients)?;
            optimiser.step(&gradients, clip::coefficient(norm, 1.0), LEARNING_RATE)?;
            losses.push(f64::from(loss.to_scalar::<f32>()?));
        }
        let all: Vec<Tensor> = self.vars.iter().map(|var| var.as_tensor().clone()).collect();
        let lent = self.weights.lent().and_then(|lent| lent.live());
        Ok(Trained {
            prediction,
            losses,
            adapters: flat(&all)?,
            block_bytes: lent.map(|live| live.most()),
            attention: way::take(),
        })
    }
}

/// Returns the numbers of all tensors, one tensor behind the other.
fn flat(tensors: &[Tensor]) -> candle_core::Result<Tensor> {
    let flat = tensors.iter().map(Tensor::flatten_all);
    Tensor::cat(&flat.collect::<candle_core::Result<Vec<_>>>()?, 0)
}
