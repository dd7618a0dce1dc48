//! Tiny transformers on a GPU beside the CPU: 20 training steps from the same start, with made-up weights.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Tensor, Var};

use super::{Row, difference};
use crate::data::Bucket;
use crate::diffusion::objective;
use crate::lora;
use crate::lora::trainable::Trainable;
use crate::models::bare;
use crate::nn::Weights;
use crate::nn::weights::Planter;
use crate::optim::adamw::{AdamW, Config};
use crate::optim::clip;
use crate::rng::Rng;
use crate::train::segments::{Keep, Policy, forward_backward};

const STEPS: usize = 20;
const BUCKET: [usize; 3] = [17, 96, 128];

/// The prediction, and the furthest of 20 losses.
pub fn compare(folder: &Path, device: &Device, dtype: DType) -> anyhow::Result<Vec<Row>> {
    let (their_prediction, theirs) = train(folder, &Device::Cpu, DType::F32)?;
    let (our_prediction, ours) = train(folder, device, dtype)?;
    let name = folder
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let furthest = ours
        .iter()
        .zip(&theirs)
        .map(|(ours, theirs)| (ours - theirs).abs() / theirs.abs());
    let (prediction, losses) = if dtype == DType::F32 {
        (1e-4, 1e-3)
    } else {
        (3e-2, 2e-2)
    };
    Ok(vec![
        Row {
            what: format!("{name} prediction {dtype:?}"),
            error: difference(&our_prediction, &their_prediction)?,
            most: prediction,
        },
        Row {
            what: format!("{name} {STEPS} training losses {dtype:?}"),
            // `max` would lose what is no number.
            error: furthest.fold(
                0.0,
                |most, error| if error > most || error.is_nan() { error } else { most },
            ),
            most: losses,
        },
    ])
}

/// The first prediction, and the losses of all steps.
fn train(folder: &Path, device: &Device, dtype: DType) -> anyhow::Result<(Tensor, Vec<f64>)> {
    let config = lora::Config {
        rank: 4,
        alpha: 4.0,
        ..lora::Config::default()
    };
    let trainable = Arc::new(Trainable::new(&config, &[], Rng::new(0), device)?);
    let planter = Some(trainable.clone() as Arc<dyn Planter>);
    let weights = Weights::random(dtype, device);
    let bare = bare::open(folder, weights, planter, Bucket::from(BUCKET), 1)?;
    let pairs = trainable.finish()?.into_iter();
    let vars: Vec<Var> = pairs.flat_map(|pair| [pair.a, pair.b]).collect();
    let mut optimiser = AdamW::new(vars.clone(), &Config::default())?;
    let prediction = bare.denoiser.forward(&bare.input)?.detach();
    let loss = |prediction: &Tensor| objective::loss(prediction, &bare.target, None);
    let keep: Keep = Policy::Inputs.keep(None);
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let passed = forward_backward(&*bare.denoiser, &bare.input, &loss, &vars, keep)?;
        let gradients: Option<Vec<Tensor>> = passed.gradients.into_iter().collect();
        let gradients = gradients.context("an adapter without a gradient")?;
        let norm = clip::global_norm(&gradients)?;
        optimiser.step(&gradients, clip::coefficient(norm, 1.0), 1e-2)?;
        losses.push(f64::from(passed.loss.to_scalar::<f32>()?));
    }
    Ok((prediction, losses))
}
