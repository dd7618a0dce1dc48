//! Whole transformers in few bits: they answer and learn as with their decoded weights.
//! scripts/fixtures/make_quantized.py stores them, and asks diffusers with the weights that bitsandbytes decodes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use vtrain::lora::trainable::{LoraPair, Trainable};
use vtrain::lora::{self, TargetModules};
use vtrain::models::denoiser::{Denoiser, Input};
use vtrain::models::registry;
use vtrain::models::wan::dit::Dit;
use vtrain::nn::{Load, Weights};
use vtrain::rng::Rng;
use vtrain::train::segments::{ActivationPolicy, FreeMemory, forward_backward};

use super::fixture;

const KINDS: [&str; 2] = ["nf4", "int8"];

fn folder(kind: &str) -> PathBuf {
    fixture("transformers").join(kind)
}

pub fn answers() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture("transformers/answers.safetensors"), &Device::Cpu).unwrap()
}

pub fn input(answers: &HashMap<String, Tensor>) -> Input {
    let of = |name: &str| answers[name].clone();
    Input::new(of("latents"), of("timestep"), of("text"))
}

/// max |a - b| / max |b|
pub fn relative(a: &Tensor, b: &Tensor) -> f32 {
    let largest = |x: Tensor| {
        let all = x.abs().unwrap().flatten_all().unwrap();
        all.max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    largest((a - b).unwrap()) / largest(b.clone())
}

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

/// The same transformer with its weights decoded.
fn decoded(kind: &str, to: &Path) {
    let dense = fixture("../wan/wan-2.1-t2v/transformer");
    let dense_weights = dense.join("diffusion_pytorch_model.safetensors");
    let shapes = candle_core::safetensors::load(&dense_weights, &Device::Cpu).unwrap();
    let weights = Weights::read(&(&folder(kind)).into(), &load()).unwrap();
    let tensors: HashMap<String, Tensor> = shapes
        .iter()
        .map(|(name, tensor)| (name.clone(), weights.get(tensor.dims(), name).unwrap()))
        .collect();
    weights.finish(&[]).unwrap();
    candle_core::safetensors::save(&tensors, to.join("diffusion_pytorch_model.safetensors")).unwrap();
    std::fs::copy(dense.join("config.json"), to.join("config.json")).unwrap();
}

#[test]
fn a_transformer_in_few_bits_predicts_what_diffusers_predicts_with_its_decoded_weights() {
    let answers = answers();
    for kind in KINDS {
        let model = Dit::load(&folder(kind), &load()).unwrap();
        let off = relative(
            &model.forward(&input(&answers)).unwrap(),
            &answers[&format!("{kind}.out")],
        );
        println!("{kind}: {off:.1e}");
        assert!(off <= 1e-5, "{kind}: {off:e}");
        // Its headers alone show that it can be built.
        Dit::load(&folder(kind), &Load::headers(DType::F32, &Device::Cpu)).unwrap();
    }
}

fn trained(folder: &Path, answers: &HashMap<String, Tensor>) -> (Vec<f32>, Vec<Tensor>) {
    trained_by(folder, &load(), answers)
}

/// The losses of three steps, and the gradients of all adapters in the last one.
pub fn trained_by(folder: &Path, load: &Load, answers: &HashMap<String, Tensor>) -> (Vec<f32>, Vec<Tensor>) {
    let config = lora::Config {
        rank: 2,
        alpha: 2.0,
        target_modules: TargetModules::Suffixes(vec!["to_q".into(), "to_v".into(), "net.2".into()]),
        ..lora::Config::default()
    };
    let trainable = Arc::new(Trainable::new(&config, &registry::names(), Rng::new(3), &Device::Cpu).unwrap());
    let model = Dit::load(folder, &load.with_adapters(trainable.clone())).unwrap();
    let pairs = trainable.finish().unwrap();
    let vars: Vec<Var> = pairs.into_iter().flat_map(|LoraPair { a, b, .. }| [a, b]).collect();
    let loss = |prediction: &Tensor| prediction.sqr()?.mean_all();
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let saved = ActivationPolicy::Inputs.saved_activations(FreeMemory::Unknown);
        let passed = forward_backward(&model, &input(answers), &loss, &vars, saved).unwrap();
        losses.push(passed.loss.to_scalar::<f32>().unwrap());
        gradients = passed.gradients.into_iter().map(Option::unwrap).collect();
        for (var, gradient) in vars.iter().zip(&gradients) {
            var.set(&(var.as_tensor() - (gradient * 0.05).unwrap()).unwrap())
                .unwrap();
        }
    }
    (losses, gradients)
}

#[test]
fn adapters_over_few_bits_learn_what_they_learn_over_the_decoded_weights() {
    let answers = answers();
    for kind in KINDS {
        let dense = tempfile::tempdir().unwrap();
        decoded(kind, dense.path());
        let ((losses, gradients), (dense_losses, dense_gradients)) =
            (trained(&folder(kind), &answers), trained(dense.path(), &answers));
        assert!(losses[2] < losses[0], "{kind}: {losses:?}");
        for (ours, theirs) in losses.iter().zip(dense_losses) {
            assert!((ours - theirs).abs() <= 1e-4 * theirs, "{kind}: {ours} {theirs}");
        }
        for (ours, theirs) in gradients.iter().zip(&dense_gradients) {
            let off = relative(ours, theirs);
            assert!(off <= 1e-4, "{kind}: {off:e}");
        }
    }
}

#[test]
fn a_part_of_a_stored_matrix_that_is_missing_or_of_another_size_is_refused_by_name() {
    let tensors = |folder: &Path| {
        let path = folder.join("diffusion_pytorch_model.safetensors");
        std::fs::read(path).unwrap()
    };
    let name = "blocks.0.attn1.to_q.weight";
    for (change, said) in [(Some((name, vec![0u8; 7])), name), (None, "blocks.0.attn1.to_q.weight")] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(folder("nf4").join("config.json"), directory.path().join("config.json")).unwrap();
        let bytes = tensors(&folder("nf4"));
        let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut kept: Vec<_> = all.tensors();
        let spoiled = change.as_ref().map(|(_, data)| {
            safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![data.len(), 1], data).unwrap()
        });
        match &spoiled {
            Some(view) => {
                kept.retain(|(other, _)| other != name);
                kept.push((name.to_string(), view.clone()));
            }
            None => kept.retain(|(other, _)| other != &format!("{name}.absmax")),
        }
        let path = directory.path().join("diffusion_pytorch_model.safetensors");
        safetensors::serialize_to_file(kept, None, &path).unwrap();
        let error = Dit::load(directory.path(), &load()).map(drop).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains(said) && error.contains(directory.path().to_str().unwrap()),
            "{error}"
        );
    }
}
