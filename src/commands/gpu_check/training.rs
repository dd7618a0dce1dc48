//! Tiny transformers on a GPU beside the CPU: training steps from the same start, with made-up weights.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Tensor, Var};

use super::row::{Row, difference};
use crate::data::Bucket;
use crate::diffusion::objective;
use crate::lora;
use crate::lora::trainable::Trainable;
use crate::models::bare::{self, Bare};
use crate::nn::Weights;
use crate::nn::dropout::Seed;
use crate::nn::weights::Planter;
use crate::ops::attention::way::{self, Ran};
use crate::optim::adamw::{AdamW, Config};
use crate::optim::clip;
use crate::rng::Rng;
use crate::train::memory;
use crate::train::segments::{Keep, Policy, forward_backward};

const LEARNING_RATE: f64 = 1e-2;

/// How much is trained.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub steps: usize,
    /// Of which a checkpoint is given the first that it takes: some know positions for one size alone.
    pub buckets: [[usize; 3]; 3],
}

impl Extent {
    pub const FULL: Self = Self {
        steps: 20,
        buckets: [[17, 96, 128], [9, 32, 48], [9, 64, 96]],
    };

    /// For trying it out.
    pub const QUICK: Self = Self {
        steps: 3,
        buckets: [[9, 32, 48], [9, 64, 96], [17, 96, 128]],
    };
}
const POLICIES: [Policy; 4] = [Policy::Auto, Policy::All, Policy::InputsAndAttention, Policy::Inputs];

/// The prediction, and the furthest of all losses, with so much dropout in the adapters.
pub fn compare(folder: &Path, name: &str, device: &Device, extent: Extent, dropout: f64) -> anyhow::Result<Vec<Row>> {
    let bucket = bucket(folder, extent)?;
    let theirs = Model::open(folder, bucket, &Device::Cpu, DType::F32, dropout)?.train(extent.steps)?;
    let mut rows = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let ours = Model::open(folder, bucket, device, dtype, dropout)?.train(extent.steps)?;
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
            // `max` would lose what is no number.
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

/// The gradients of one step by every `train.keep`, beside those of the CPU with everything kept.
pub fn policies(folder: &Path, name: &str, device: &Device, extent: Extent) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let bucket = bucket(folder, extent)?;
    let theirs = Model::open(folder, bucket, &Device::Cpu, DType::F32, 0.0)?.gradients(Keep::All)?;
    for dtype in [DType::F32, DType::BF16] {
        let model = Model::open(folder, bucket, device, dtype, 0.0)?;
        for policy in POLICIES {
            way::take();
            let ours = model.gradients(policy.keep(memory::free(device)))?;
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

/// The bucket for a checkpoint.
fn bucket(folder: &Path, extent: Extent) -> anyhow::Result<Bucket> {
    let runs = |bucket: Bucket| -> anyhow::Result<Bucket> {
        let bare = bare::open(folder, Weights::random(DType::F32, &Device::Cpu), None, bucket, 1)?;
        bare.denoiser.forward(&bare.input)?;
        Ok(bucket)
    };
    let [first, second, third] = extent.buckets.map(Bucket::from);
    runs(first).or_else(|_| runs(second)).or_else(|_| runs(third))
}

/// A tiny transformer with adapters.
struct Model {
    bare: Bare,
    vars: Vec<Var>,
    dropout: Seed,
}

/// What training came to.
struct Trained {
    /// Before the first step.
    prediction: Tensor,
    losses: Vec<f64>,
    attention: Vec<Ran>,
}

impl Model {
    fn open(folder: &Path, bucket: Bucket, device: &Device, dtype: DType, dropout: f64) -> anyhow::Result<Self> {
        let config = lora::Config {
            rank: 4,
            alpha: 4.0,
            dropout,
            ..lora::Config::default()
        };
        let trainable = Arc::new(Trainable::new(&config, &[], Rng::new(0), device)?);
        let planter = Some(trainable.clone() as Arc<dyn Planter>);
        let weights = Weights::random(dtype, device);
        let bare = bare::open(folder, weights, planter, bucket, 1)?;
        let pairs = trainable.finish()?.into_iter();
        Ok(Self {
            bare,
            vars: pairs.flat_map(|pair| [pair.a, pair.b]).collect(),
            dropout: trainable.dropout(),
        })
    }

    /// The loss, and the gradients of all variables.
    fn pass(&self, keep: Keep) -> anyhow::Result<(Tensor, Vec<Tensor>)> {
        let Bare {
            denoiser,
            input,
            target,
            ..
        } = &self.bare;
        let loss = |prediction: &Tensor| objective::loss(prediction, target, None);
        let passed = forward_backward(&**denoiser, input, &loss, &self.vars, keep)?;
        let gradients: Option<Vec<Tensor>> = passed.gradients.into_iter().collect();
        Ok((passed.loss, gradients.context("an adapter without a gradient")?))
    }

    /// All gradients one behind the other, with adapters that are not at their start, where half of them would be 0.
    fn gradients(&self, keep: Keep) -> anyhow::Result<Tensor> {
        let mut rng = Rng::new(1);
        for var in &self.vars {
            let numbers = rng.randn(var.elem_count());
            var.set(&(Tensor::from_vec(numbers, var.shape(), var.device())? * 0.1)?)?;
        }
        let (_, gradients) = self.pass(keep)?;
        let flat = gradients.iter().map(Tensor::flatten_all);
        Ok(Tensor::cat(&flat.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
    }

    fn train(self, steps: usize) -> anyhow::Result<Trained> {
        let mut optimiser = AdamW::new(self.vars.clone(), &Config::default())?;
        way::take();
        let prediction = self.bare.denoiser.forward(&self.bare.input)?.detach();
        let mut losses = Vec::new();
        for step in 0..steps {
            self.dropout.set(Some(step as u64));
            let (loss, gradients) = self.pass(Policy::Inputs.keep(None))?;
            let norm = clip::global_norm(&gradients)?;
            optimiser.step(&gradients, clip::coefficient(norm, 1.0), LEARNING_RATE)?;
            losses.push(f64::from(loss.to_scalar::<f32>()?));
        }
        Ok(Trained {
            prediction,
            losses,
            attention: way::take(),
        })
    }
}
