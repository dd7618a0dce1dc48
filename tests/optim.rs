//! The optimiser, clipping, averages and schedules against torch and diffusers, and AdamW against candle-nn's.
//! scripts/fixtures/make_optim.py writes the expected numbers; variables and gradients come from `randn`.

mod eight_bit; // moments in 8 bits, against bitsandbytes
mod peer; // candle-nn

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use serde::Deserialize;
use vtrain::optim::adamw::{AdamW, Config, Moments, State};
use vtrain::optim::ema::{self, Ema};
use vtrain::optim::{clip, lr};
use vtrain::problems::Problems;
use vtrain::rng::Rng;

const SHAPES: [(usize, usize); 5] = [(3, 5), (1, 7), (1, 1), (17, 33), (130, 127)];
const STEPS: usize = 20;
const MAX_NORM: f64 = 1.0;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/optim")
}

fn load(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join(name), &Device::Cpu).unwrap()
}

/// The variables' first values and the gradients step by step, as `draws` in the script has them.
fn draws(dtype: DType) -> (Vec<Tensor>, Vec<Vec<Tensor>>) {
    let mut rng = Rng::new(11);
    let mut randn = |scale: f32| -> Vec<Tensor> {
        let all = SHAPES.iter().map(|&shape| {
            let values = rng.randn(shape.0 * shape.1).into_iter().map(|x| x * scale).collect();
            Tensor::from_vec::<_, f32>(values, shape, &Device::Cpu)
                .unwrap()
                .to_dtype(dtype)
                .unwrap()
        });
        all.collect()
    };
    let variables = randn(1.0);
    let gradients = (0..STEPS).map(|step| randn((0.001 * f64::from(1 << step)) as f32));
    (variables, gradients.collect())
}

fn variables(values: &[Tensor]) -> Vec<Var> {
    values.iter().map(|value| Var::from_tensor(value).unwrap()).collect()
}

fn settings(run: &str) -> Config {
    let (weight_decay, beta2, epsilon) = match run {
        "plain" => (0.0, 0.95, 1e-8),
        _ => (0.1, 0.999, 1e-6),
    };
    Config {
        weight_decay,
        beta2,
        epsilon,
        ..Config::default()
    }
}

fn rate(step: usize) -> f64 {
    0.01 / (1 + step) as f64
}

/// Largest |a - b| / max |b|.
fn error(a: &Tensor, b: &Tensor) -> f64 {
    let flat = |x: &Tensor| -> Vec<f64> {
        let x = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        x.to_vec1().unwrap()
    };
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    apart / b.iter().map(|b| b.abs()).fold(0.0, f64::max)
}

fn follows_torch(file: &str, run: &str, dtype: DType, tolerance: f64) {
    let expected = load(file);
    let (values, gradients) = draws(dtype);
    let vars = variables(&values);
    let mut optimizer = AdamW::new(vars.clone(), &settings(run)).unwrap();
    let mut average = Ema::new(vars.clone(), 0.5).unwrap();
    let norms: Vec<f64> = expected["norms"].to_vec1().unwrap();
    let mut worst = 0f64;
    let mut compare = |key: &str, found: &Tensor| {
        if let Some(expected) = expected.get(key) {
            let error = error(found, expected);
            assert!(error <= tolerance, "{file} {key}: {error:e}");
            worst = worst.max(error);
        }
    };
    for (step, gradients) in gradients.iter().enumerate() {
        let norm = clip::global_norm(gradients).unwrap();
        assert!((norm / norms[step] - 1.0).abs() <= 1e-6, "{norm} {}", norms[step]);
        optimizer
            .step(gradients, clip::coefficient(norm, MAX_NORM), rate(step))
            .unwrap();
        average.update().unwrap();
        for (i, var) in vars.iter().enumerate() {
            compare(&format!("step{step}.{i}"), var);
        }
    }
    let State { step, moments } = optimizer.state().unwrap();
    assert_eq!(step, STEPS);
    for (i, moments) in moments.iter().enumerate() {
        let Moments::Dense { exp_avg, exp_avg_sq } = moments else {
            panic!("{moments:?}");
        };
        compare(&format!("exp_avg.{i}"), exp_avg);
        compare(&format!("exp_avg_sq.{i}"), exp_avg_sq);
        compare(&format!("ema.{i}"), &average.averages()[i]);
    }
    println!("{file}: {worst:.1e}");
}

#[test]
fn adamw_clipping_and_averages_follow_torch_and_diffusers() {
    follows_torch("plain.safetensors", "plain", DType::F32, 1e-6);
    follows_torch("decay.safetensors", "decay", DType::F32, 1e-6);
}

#[test]
fn what_is_not_f32_goes_through_candles_operations_to_the_same_end() {
    follows_torch("f64.safetensors", "decay", DType::F64, 1e-12);
}

/// All variables after `steps`, with this many threads.
fn run(threads: usize, optimizer: &mut AdamW, vars: &[Var], steps: &[Vec<Tensor>]) -> Vec<Vec<u32>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        for gradients in steps {
            let norm = clip::global_norm(gradients).unwrap();
            optimizer
                .step(gradients, clip::coefficient(norm, MAX_NORM), 1e-2)
                .unwrap();
        }
    });
    vars.iter().map(|var| bits(var)).collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn the_result_does_not_depend_on_the_threads() {
    let (values, gradients) = draws(DType::F32);
    let [one, many] = [1, 5].map(|threads| {
        let vars = variables(&values);
        let mut optimizer = AdamW::new(vars.clone(), &settings("decay")).unwrap();
        run(threads, &mut optimizer, &vars, &gradients)
    });
    assert_eq!(one, many);
}

#[test]
fn a_restored_optimiser_goes_on_as_if_nothing_had_happened() {
    let (values, gradients) = draws(DType::F32);
    let vars = variables(&values);
    let mut optimizer = AdamW::new(vars.clone(), &settings("decay")).unwrap();
    let mut average = Ema::new(vars.clone(), 0.9).unwrap();
    run(2, &mut optimizer, &vars, &gradients[..8]);
    average.update().unwrap();
    average.update().unwrap();
    let (state, averages) = (optimizer.state().unwrap(), average.state().unwrap());
    let kept: Vec<Tensor> = vars.iter().map(|var| var.copy().unwrap()).collect();
    let whole = run(2, &mut optimizer, &vars, &gradients[8..]);
    average.update().unwrap();

    let vars = variables(&kept);
    let mut optimizer = AdamW::new(vars.clone(), &settings("decay")).unwrap();
    let mut again = Ema::new(vars.clone(), 0.9).unwrap();
    optimizer.restore(state).unwrap();
    again.restore(averages).unwrap();
    assert_eq!(run(2, &mut optimizer, &vars, &gradients[8..]), whole);
    again.update().unwrap();
    for (a, b) in average.averages().iter().zip(again.averages()) {
        assert_eq!(bits(a), bits(b));
    }
}

#[test]
fn what_belongs_to_other_variables_is_refused_and_changes_nothing() {
    let (values, gradients) = draws(DType::F32);
    let vars = variables(&values);
    let mut optimizer = AdamW::new(vars.clone(), &Config::default()).unwrap();
    let mut average = Ema::new(vars.clone(), 0.9).unwrap();
    let before = optimizer.state().unwrap();
    let told = |result: candle_core::Result<()>| result.unwrap_err().to_string();
    assert!(told(optimizer.step(&gradients[0][1..], 1.0, 1.0)).contains("4 gradients for 5 variables"));
    let mut swapped = gradients[0].clone();
    swapped.swap(3, 4);
    assert!(told(optimizer.step(&swapped, 1.0, 1.0)).contains("gradient 3 is [130, 127]"));
    let mut state = before.clone();
    state.moments.swap(0, 1);
    assert!(told(optimizer.restore(state)).contains("exp_avg 0 is [1, 7], its variable [3, 5]"));
    let state = ema::State {
        updates: 1,
        averages: values[1..].to_vec(),
    };
    assert!(told(average.restore(state)).contains("averages of 4 variables, but there are 5"));
    assert_eq!(optimizer.state().unwrap().step, 0);
    for (var, value) in vars.iter().zip(&values) {
        assert_eq!(bits(var), bits(value));
    }
}

#[test]
fn a_gradient_may_lie_in_memory_in_any_order() {
    let (values, gradients) = draws(DType::F32);
    let [straight, turned] = [false, true].map(|turn| {
        let vars = variables(&values);
        let mut optimizer = AdamW::new(vars.clone(), &settings("decay")).unwrap();
        let turned = |g: &Tensor| g.t().unwrap().contiguous().unwrap().t().unwrap();
        let gradients: Vec<Tensor> = gradients[3]
            .iter()
            .map(|g| if turn { turned(g) } else { g.clone() })
            .collect();
        run(1, &mut optimizer, &vars, &[gradients])
    });
    assert_eq!(straight, turned);
}

#[test]
fn a_norm_that_is_no_number_is_no_coefficient_either() {
    let infinite = Tensor::new(&[1f32, f32::INFINITY], &Device::Cpu).unwrap();
    let norm = clip::global_norm(&[infinite]).unwrap();
    assert_eq!(norm, f64::INFINITY);
    let nan = Tensor::new(&[1f32, f32::NAN], &Device::Cpu).unwrap();
    let norm = clip::global_norm(&[nan]).unwrap();
    assert!(norm.is_nan() && clip::coefficient(norm, 1.0).is_nan());
    assert_eq!(clip::global_norm(&[]).unwrap(), 0.0);
    assert_eq!(clip::coefficient(0.5, 1.0), 1.0);
    assert_eq!(clip::coefficient(3.0, 1.0), 1.0 / (3.0 + 1e-6));
}

#[derive(Deserialize)]
struct Schedules {
    base_lr: f64,
    total_steps: usize,
    schedules: Vec<Schedule>,
}

#[derive(Deserialize)]
struct Schedule {
    config: lr::Config,
    rates: Vec<f64>,
}

#[test]
fn schedules_are_those_of_diffusers_step_for_step() {
    let text = std::fs::read_to_string(fixtures().join("schedules.json")).unwrap();
    let all: Schedules = serde_json::from_str(&text).unwrap();
    assert_eq!(all.schedules.len(), 27);
    for Schedule { config, rates } in &all.schedules {
        assert_eq!(rates.len(), 60);
        for (step, expected) in rates.iter().enumerate() {
            let found = config.at(all.base_lr, step, all.total_steps);
            assert!(
                (found - expected).abs() <= 1e-15 * all.base_lr,
                "{config:?} at {step}: {found} {expected}"
            );
        }
    }
}

/// `diffusers.optimization.get_scheduler` with `num_warmup_steps = int(0.1 * total)`.
#[test]
fn a_warm_up_given_as_a_share_is_as_many_steps_of_the_run() {
    for name in [lr::Name::ConstantWithWarmup, lr::Name::Cosine, lr::Name::Linear] {
        let share = lr::Config {
            name,
            warmup_ratio: Some(0.1),
            ..lr::Config::default()
        };
        for (total, warmup_steps) in [(500, 50), (505, 50), (9, 0)] {
            let steps = lr::Config {
                name,
                warmup_steps,
                ..lr::Config::default()
            };
            for step in [0, 1, 25, 49, 50, 51, 400] {
                assert_eq!(
                    share.at(1e-3, step, total),
                    steps.at(1e-3, step, total),
                    "{step} of {total}"
                );
            }
        }
    }
    for ratio in [-0.1, 1.0, f64::NAN] {
        let config = lr::Config {
            warmup_ratio: Some(ratio),
            ..lr::Config::default()
        };
        assert_eq!(problems(&config)[0].0, "warmup_ratio", "{ratio}");
    }
}

#[test]
fn schedules_know_no_bad_counts() {
    let names = [
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
    ];
    for name in names {
        for warmup_steps in [0, 1, 5, 100] {
            let json = serde_json::json!({"name": name, "warmup_steps": warmup_steps, "power": 0.3});
            let config: lr::Config = serde_json::from_value(json).unwrap();
            for total in [0, 1, 5, 50] {
                for step in [0, 1, 4, 5, 6, 49, 50, 51, 1000, usize::MAX] {
                    for base in [1e-3, 1e-8] {
                        let rate = config.at(base, step, total);
                        assert!(
                            (0.0..=base * (1.0 + 1e-12)).contains(&rate),
                            "{config:?} at {step} of {total}: {rate}"
                        );
                    }
                }
            }
        }
    }
}

fn problems(config: &lr::Config) -> Vec<(String, String)> {
    Problems::of(|problems| config.check(problems)).into_iter().collect()
}

#[test]
fn a_cosine_with_cycles_is_told_which_schedule_has_them() {
    let config = lr::Config {
        name: lr::Name::Cosine,
        num_cycles: 3,
        ..lr::Config::default()
    };
    let wrong = problems(&config);
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].1.contains("cosine_with_restarts"), "{wrong:?}");
}
