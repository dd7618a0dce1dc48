//! Gradients of CogVideoX's transformer against PEFT and against finite differences, whole and segment by segment.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor, Var};
use vtrain::models::denoiser::{Denoiser, Input, State};
use vtrain::nn::adapter::Adapt;
use vtrain::nn::adapter::LayerId;
use vtrain::nn::adapter::LoraLayer;
use vtrain::train::segments::{ActivationBudget, SavedActivations, forward_backward};

use super::{CASES, dit, input, load, norm, randn, relative_error};

/// Adapters by path, whose matrices are variables.
struct Adapters(HashMap<String, (Var, Var)>);

impl Adapters {
    /// Those of the fixtures' LoRA: `transformer.<path>.lora_{A,B}.weight`, rank 4, alpha 8.
    fn load() -> Arc<Self> {
        let mut adapters = HashMap::new();
        let tensors = load("lora/pytorch_lora_weights.safetensors");
        for (key, a) in &tensors {
            if let Some(path) = key.strip_suffix(".lora_A.weight") {
                let b = &tensors[&format!("{path}.lora_B.weight")];
                let pair = (Var::from_tensor(a).unwrap(), Var::from_tensor(b).unwrap());
                adapters.insert(path.strip_prefix("transformer.").unwrap().to_string(), pair);
            }
        }
        assert_eq!(adapters.len(), 8);
        Arc::new(Self(adapters))
    }
}

impl Adapt for Adapters {
    fn adapt(&self, layer: &LayerId) -> Result<Vec<LoraLayer>> {
        let adapter = self.0.get(layer.path).map(|(a, b)| LoraLayer {
            a: a.as_tensor().clone(),
            b: b.as_tensor().clone(),
            scale: 2.0,
            dropout: None,
        });
        Ok(adapter.into_iter().collect())
    }
}

/// The training example of the fixtures: input, target.
fn example() -> (HashMap<String, Tensor>, Input) {
    let answers = load("training.safetensors");
    let of = |what: &str| answers[what].clone();
    let input = Input::new(of("noisy"), of("timestep"), of("text"));
    (answers, input)
}

fn mse(prediction: &Tensor, target: &Tensor) -> Tensor {
    (prediction - target).unwrap().sqr().unwrap().mean_all().unwrap()
}

#[test]
fn lora_gradients_are_those_of_peft() {
    let adapters = Adapters::load();
    let dit = dit("cogvideox-5b", DType::F32, Some(adapters.clone()));
    let (answers, input) = example();
    let prediction = dit.forward(&input).unwrap();
    assert!(relative_error(&prediction, &answers["prediction"]) <= 1e-5);
    let loss = mse(&prediction, &answers["target"]);
    assert!(relative_error(&loss, &answers["loss"]) <= 1e-5);
    let gradients = loss.backward().unwrap();
    for (path, (a, b)) in &adapters.0 {
        for (matrix, var) in [("A", a), ("B", b)] {
            let expected = &answers[&format!("grad.{path}.lora_{matrix}.weight")];
            let error = relative_error(gradients.get(var).unwrap(), expected);
            println!("{path} {matrix}: {error:.1e}");
            assert!(error <= 1e-4, "{path} {matrix}: {error:e}");
        }
    }
}

#[test]
fn segments_run_backwards_one_by_one_give_the_same_gradients() {
    let adapters = Adapters::load();
    let dit = dit("cogvideox-5b", DType::F32, Some(adapters.clone()));
    let (answers, input) = example();
    let whole = mse(&dit.forward(&input).unwrap(), &answers["target"])
        .backward()
        .unwrap();

    // Forwards, keeping what each segment receives.
    let mut received = vec![dit.embed(&input).unwrap()];
    for index in 0..dit.num_blocks() {
        received.push(dit.block(index, received.last().unwrap()).unwrap());
    }
    // Backwards: each segment again from variables, whose gradients are passed to the previous segment.
    let restart = |state: &State| {
        let vars: Vec<Var> = state
            .tensors()
            .iter()
            .map(|t| Var::from_tensor(&t.detach()).unwrap())
            .collect();
        let tensors = vars.iter().map(|var| var.as_tensor().clone()).collect();
        (state.with_tensors(tensors).unwrap(), vars)
    };
    let (state, mut vars) = restart(&received[dit.num_blocks()]);
    let mut gradients = mse(&dit.head(&state).unwrap(), &answers["target"]).backward().unwrap();
    for index in (0..dit.num_blocks()).rev() {
        let due: Vec<Option<Tensor>> = vars.iter().map(|var| gradients.get(var).cloned()).collect();
        let (state, before) = restart(&received[index]);
        let after = dit.block(index, &state).unwrap().tensors();
        let sum = after
            .iter()
            .zip(&due)
            .filter_map(|(tensor, due)| Some((tensor * due.as_ref()?).unwrap().sum_all().unwrap()))
            .reduce(|a, b| (a + b).unwrap())
            .unwrap();
        gradients = sum.backward().unwrap();
        for (path, (a, b)) in &adapters.0 {
            if path.starts_with(&format!("transformer_blocks.{index}.")) {
                assert!(
                    relative_error(gradients.get(a).unwrap(), whole.get(a).unwrap()) <= 1e-5,
                    "{path}"
                );
                assert!(
                    relative_error(gradients.get(b).unwrap(), whole.get(b).unwrap()) <= 1e-5,
                    "{path}"
                );
            }
        }
        vars = before;
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    const STEP: f64 = 2e-3;
    let answers = load("dit.safetensors");
    for (name, case) in CASES {
        let dit = dit(name, DType::F32, None);
        let input = input(&answers, &format!("{name}.{case}"));
        let weights = randn(7, answers[&format!("{name}.{case}.out")].dims());
        let value = |latents: &Tensor, text: &Tensor| {
            let input = Input {
                latents: latents.clone(),
                text: text.clone().into(),
                ..input.clone()
            };
            (dit.forward(&input).unwrap() * &weights).unwrap()
        };
        let (latents, text) = (
            Var::from_tensor(&input.latents).unwrap(),
            Var::from_tensor(&input.text.hidden).unwrap(),
        );
        let gradients = value(&latents, &text).sum_all().unwrap().backward().unwrap();
        for (what, var) in [("latents", &latents), ("text", &text)] {
            let gradient = gradients.get(var).unwrap();
            let direction = (gradient / norm(gradient)).unwrap(); // the slope along the gradient is its length
            let at = |step: f64| {
                let moved = (var.as_tensor().detach() + (&direction * step).unwrap()).unwrap();
                let value = match what {
                    "latents" => value(&moved, &input.text.hidden),
                    _ => value(&input.latents, &moved),
                };
                value
                    .to_dtype(DType::F64)
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .to_scalar::<f64>()
                    .unwrap()
            };
            let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let error = (slope / norm(gradient) - 1.0).abs();
            println!("{name}.{case} {what}: {error:.1e}");
            assert!(error <= 5e-3, "{name}.{case} {what}: {slope} {}", norm(gradient));
        }
    }
}

#[test]
fn a_lora_gradient_agrees_with_finite_differences() {
    const STEP: f64 = 5e-3;
    let adapters = Adapters::load();
    let dit = dit("cogvideox-5b", DType::F32, Some(adapters.clone()));
    let (_, input) = example();
    let weights = randn(8, input.latents.dims());
    let value = || (dit.forward(&input).unwrap() * &weights).unwrap();
    let gradients = value().sum_all().unwrap().backward().unwrap();
    let (a, b) = &adapters.0["transformer_blocks.0.attn1.to_q"];
    for var in [a, b] {
        let gradient = gradients.get(var).unwrap();
        let start = var.as_tensor().copy().unwrap();
        let at = |step: f64| {
            let direction = (gradient * (step / norm(gradient))).unwrap();
            var.set(&(&start + direction).unwrap()).unwrap();
            let value = value().to_dtype(DType::F64).unwrap().sum_all().unwrap();
            var.set(&start).unwrap();
            value.to_scalar::<f64>().unwrap()
        };
        let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        assert!(
            (slope / norm(gradient) - 1.0).abs() <= 5e-3,
            "{slope} {}",
            norm(gradient)
        );
    }
}

#[test]
fn what_is_kept_between_the_passes_changes_no_bit() {
    let adapters = Adapters::load();
    let dit = dit("cogvideox-5b", DType::F32, Some(adapters.clone()));
    let (answers, input) = example();
    let vars: Vec<Var> = adapters.0.values().flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let loss = |prediction: &Tensor| Ok(mse(prediction, &answers["target"]));
    let run = |keep| forward_backward(&dit, &input, &loss, &vars, keep).unwrap();
    let expected = run(SavedActivations::All);
    let room = |attention, blocks| {
        SavedActivations::Within(ActivationBudget {
            attention,
            blocks,
            spare_blocks: 0,
        })
    };
    for keep in [
        room(0, 0),
        room(usize::MAX, 0),
        room(1, 0), // too little for a single output
        room(0, usize::MAX),
        room(usize::MAX, 1), // too little for a single block
    ] {
        let found = run(keep.clone());
        assert_eq!(numbers(&found.loss), numbers(&expected.loss));
        for (found, expected) in found.gradients.iter().zip(&expected.gradients) {
            let (found, expected) = (found.as_ref().unwrap(), expected.as_ref().unwrap());
            assert_eq!(numbers(found), numbers(expected), "{keep:?}");
        }
    }
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}
