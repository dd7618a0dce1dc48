//! Targets of flow matching, against torch and diffusers. `tests/fixtures/flow/objective.*` are written by
//! `scripts/fixtures/make_flow_objective.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use serde::Deserialize;
use vtrain::diffusion::objective::{self, Objective, Timesteps};
use vtrain::diffusion::schedulers::{self, Scheduler};
use vtrain::diffusion::timesteps::{Config, Density, Shift, Weighting};
use vtrain::problems::Problems;
use vtrain::rng::Rng;

#[derive(Deserialize)]
struct Cases {
    seed: u64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    diffusion: Config,
    scheduler: serde_json::Value,
    tokens: Option<usize>,
    given: Option<Vec<bool>>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/flow")
}

fn scheduler(config: &serde_json::Value) -> Scheduler {
    Scheduler::new(schedulers::Config::parse(&config.to_string()).unwrap()).unwrap()
}

fn ddpm() -> Scheduler {
    scheduler(&serde_json::json!({"_class_name": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction"}))
}

/// max |a - b| / max |b|
fn relative_error(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let most = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    most(&(a - b).unwrap()) / most(b)
}

#[test]
fn timesteps_mixtures_losses_and_gradients_are_those_of_torch() {
    let text = std::fs::read_to_string(fixtures().join("objective.json")).unwrap();
    let Cases { seed, cases } = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 14);
    let device = Device::Cpu;
    let answers: HashMap<String, Tensor> =
        candle_core::safetensors::load(fixtures().join("objective.safetensors"), &device).unwrap();
    let (clean, answer) = (&answers["clean"], &answers["answer"]);
    let frames = clean.dim(2).unwrap();
    for case in cases {
        let objective = Objective::new(&scheduler(&case.scheduler), &case.diffusion).unwrap();
        let mut rng = Rng::new(seed);
        let at = objective.draw(clean.dim(0).unwrap(), case.tokens, &mut rng).unwrap();
        let noise = Tensor::from_vec(rng.randn(clean.elem_count()), clean.dims(), &device).unwrap();
        let weighs = case.given.is_some() || case.diffusion.weighting != Weighting::None;
        let at = at.with_given(case.given.unwrap_or_default());
        let noised = objective.mix(clean, &noise, &at).unwrap();
        assert_eq!(noised.weight.is_some(), weighs, "{}", case.name);

        let prediction = Var::from_tensor(answer).unwrap();
        let loss = objective::loss(&prediction, &noised.target, noised.weight.as_ref()).unwrap();
        let gradient = loss.backward().unwrap().remove(&prediction).unwrap();
        let ours = [
            ("timestep", at.tensor(frames, &device).unwrap()),
            ("noisy", noised.noisy),
            ("target", noised.target),
            ("loss", loss.unsqueeze(0).unwrap()),
            ("gradient", gradient),
        ];
        for (key, ours) in ours {
            let error = relative_error(&ours, &answers[&format!("{}.{key}", case.name)]);
            assert!(error < 2e-6, "{}: {key}: {error}", case.name);
        }
    }
}

#[test]
fn a_frame_that_is_given_is_clean_at_timestep_0_and_has_no_gradient() {
    let device = Device::Cpu;
    let objective = Objective::new(
        &scheduler(&serde_json::json!({"_class_name": "FlowMatchEulerDiscreteScheduler"})),
        &Config::default(),
    );
    let objective = objective.unwrap();
    let mut rng = Rng::new(0);
    let mut draw = || Tensor::from_vec(rng.randn(2 * 3 * 4 * 2), (2, 3, 4, 2, 1), &device).unwrap();
    let (clean, noise, answer) = (draw(), draw(), Var::from_tensor(&draw()).unwrap());
    let at = Timesteps::flowing(vec![0.25, 0.5], 1000).with_given(vec![false, true]);
    let timestep: Vec<Vec<f32>> = at.tensor(4, &device).unwrap().to_vec2().unwrap();
    assert_eq!(timestep, [[250.0; 4], [0.0, 500.0, 500.0, 500.0]]);
    let noised = objective.mix(&clean, &noise, &at).unwrap();
    let first = |tensor: &Tensor| -> Vec<f32> {
        let first = tensor.get(1).unwrap().narrow(1, 0, 1).unwrap();
        first.flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(first(&noised.noisy), first(&clean));
    let loss = objective::loss(&answer, &noised.target, noised.weight.as_ref()).unwrap();
    let gradient = loss.backward().unwrap().remove(&answer).unwrap();
    assert!(first(&gradient).iter().all(|value| *value == 0.0));
    // The mean is over 7 frames of 8.
    let squares = (answer.as_tensor() - &noised.target).unwrap().sqr().unwrap();
    let sum: f32 = squares.sum_all().unwrap().to_scalar::<f32>().unwrap() - {
        let first = squares.get(1).unwrap().narrow(1, 0, 1).unwrap();
        first.sum_all().unwrap().to_scalar::<f32>().unwrap()
    };
    let mean = sum / (7 * 3 * 2) as f32;
    assert!((loss.to_scalar::<f32>().unwrap() - mean).abs() < 1e-5 * mean);
}

#[test]
fn a_table_of_noise_refuses_what_it_would_ignore() {
    assert!(Objective::new(&ddpm(), &Config::default()).is_ok());
    let shifted = |shift| Config {
        shift,
        ..Config::default()
    };
    assert!(Objective::new(&ddpm(), &shifted(Shift::Fixed(1.0))).is_ok());
    let density = Config {
        timesteps: Density::LogitNormal,
        logit_mean: 0.5,
        ..Config::default()
    };
    let weighting = Config {
        weighting: Weighting::Cosmap,
        ..Config::default()
    };
    let wanted = [
        (density, "diffusion.logit_mean, diffusion.timesteps:"),
        (shifted(Shift::Fixed(3.0)), "diffusion.shift:"),
        (weighting, "diffusion.weighting:"),
    ];
    for (config, keys) in wanted {
        let said = format!("{:#}", Objective::new(&ddpm(), &config).unwrap_err());
        assert!(said.starts_with(keys) && said.contains("Remove it"), "{said}");
    }
}

#[test]
fn a_shift_by_size_needs_the_size() {
    let dynamic = scheduler(&serde_json::json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true,
    }));
    let objective = Objective::new(&dynamic, &Config::default()).unwrap();
    let said = format!("{:#}", objective.draw(1, None, &mut Rng::new(0)).unwrap_err());
    assert!(
        said.contains("diffusion.shift: auto") && said.contains("give a number"),
        "{said}"
    );
    assert!(objective.draw(1, Some(100), &mut Rng::new(0)).is_ok());
}

#[test]
fn settings_that_no_density_reads_and_values_out_of_range_are_told_by_key() {
    let wrong = |yaml: serde_json::Value| -> Vec<String> {
        let config: Config = serde_json::from_value(yaml).unwrap();
        let problems = Problems::of(|problems| config.check(problems));
        problems.into_iter().map(|(key, _)| key).collect()
    };
    use serde_json::json;
    assert!(wrong(json!({"shift": "auto"})).is_empty());
    assert!(wrong(json!({"shift": 3, "timesteps": "mode", "mode_scale": 0.5})).is_empty());
    assert!(wrong(json!({"timesteps": "logit_normal", "logit_mean": -1.0, "logit_std": 2})).is_empty());
    assert_eq!(
        wrong(json!({"logit_mean": 0.5, "mode_scale": 0.5})),
        ["logit_mean", "mode_scale"]
    );
    assert_eq!(wrong(json!({"timesteps": "mode", "mode_scale": 2.0})), ["mode_scale"]);
    assert_eq!(wrong(json!({"shift": 0.0})), ["shift"]);
    assert_eq!(wrong(json!({"shift": -1})), ["shift"]);
    let said = serde_json::from_value::<Config>(json!({"shift": "automatic"})).unwrap_err();
    assert_eq!(said.to_string(), "expected a number, or auto");
}
