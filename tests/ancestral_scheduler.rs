//! Euler's method with ancestral noise, min-SNR and noise offset, against diffusers and torch.
//! `tests/fixtures/allegro/schedulers.safetensors` is written by `scripts/fixtures/allegro/scheduler.py`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use vtrain::diffusion::objective::{Objective, Timesteps};
use vtrain::diffusion::schedulers::{Config, Scheduler};
use vtrain::diffusion::timesteps;
use vtrain::rng::Rng;

use crate::dit_answers::relative_error;

const TIMESTEPS: [i64; 6] = [0, 1, 60, 200, 500, 999];

fn answers() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/allegro/schedulers.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn make(class: &str, changes: &Value) -> anyhow::Result<Scheduler> {
    let mut config = json!({"_class_name": class});
    let changes = changes.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(changes);
    Scheduler::new(Config::parse(&config.to_string())?)
}

fn ancestral(changes: &Value) -> anyhow::Result<Scheduler> {
    make("EulerAncestralDiscreteScheduler", changes)
}

/// Timesteps, sigmas, first noise, inputs, samples, and how often noise is drawn: each step draws once, the last one too.
#[test]
fn a_run_is_that_of_diffusers_in_all_that_it_visits_and_draws() {
    let answers = answers();
    for (case, steps, changes, strength) in [
        ("plain", 4, json!({}), 1.0),
        ("one", 1, json!({}), 1.0),
        ("many", 7, json!({}), 1.0),
        (
            "leading",
            4,
            json!({"timestep_spacing": "leading", "steps_offset": 1}),
            1.0,
        ),
        ("trailing", 4, json!({"timestep_spacing": "trailing"}), 1.0),
        (
            "velocity",
            3,
            json!({"prediction_type": "v_prediction", "beta_end": 0.012}),
            1.0,
        ),
        (
            "scaled",
            3,
            json!({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
            1.0,
        ),
        (
            "cosine",
            3,
            json!({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300}),
            1.0,
        ),
        (
            "given",
            3,
            json!({"num_train_timesteps": 5, "trained_betas": [0.1, 0.2, 0.3, 0.4, 0.5]}),
            1.0,
        ),
        ("from-clip", 5, json!({}), 0.6),
    ] {
        let of = |what: &str| answers[&format!("{case}.{what}")].clone();
        let near = |what: &str, ours: &Tensor, theirs: &Tensor| {
            let error = relative_error(ours, theirs);
            assert!(error <= 2e-6, "{case}: {what} {error:e}");
        };
        let scheduler = ancestral(&changes).unwrap();
        let mut run = scheduler.start(steps, None).unwrap().skip_by(strength).unwrap();
        assert_eq!(run.timesteps(), of("timesteps").to_vec1::<f64>().unwrap(), "{case}");
        let sigmas = Tensor::new(run.sigmas().unwrap(), &Device::Cpu).unwrap();
        near("sigmas", &sigmas, &of("sigmas"));
        near(
            "noisy",
            &run.add_noise(&of("clean"), &of("noise")).unwrap(),
            &of("noisy"),
        );
        near("start", &run.first_noise(&of("noise")).unwrap(), &of("start"));

        let (outputs, inputs, samples) = (of("model_output"), of("input"), of("sample"));
        let (mut rng, mut sample) = (Rng::new(42), of("start"));
        for at in 0..outputs.dim(0).unwrap() {
            near("input", &run.model_input(&sample).unwrap(), &inputs.get(at).unwrap());
            assert_eq!(run.noise_draws().unwrap(), 1, "{case} step {at}");
            let noise = Tensor::from_vec(rng.randn(sample.elem_count()), sample.shape(), &Device::Cpu).unwrap();
            let output = outputs.get(at).unwrap();
            assert!(run.clone().step(&output, &sample, None).is_err(), "noise is needed");
            sample = run.step(&output, &sample, Some(&noise)).unwrap().sample;
            near(&format!("sample {at}"), &sample, &samples.get(at).unwrap());
        }
        assert!(
            run.model_input(&sample).is_err() && run.noise_draws().unwrap() == 0,
            "{case}: the run is over"
        );
    }
}

/// The other classes' samples are the network's input, and noise is what runs start from.
#[test]
fn other_schedulers_scale_nothing() {
    let x = Tensor::ones((1, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    for class in ["CogVideoXDDIMScheduler", "FlowMatchEulerDiscreteScheduler"] {
        let scheduler = make(class, &json!({})).unwrap();
        let run = scheduler.start(4, None).unwrap();
        for same in [run.first_noise(&x).unwrap(), run.model_input(&x).unwrap()] {
            assert_eq!(same.to_vec2::<f32>().unwrap(), [[1.0, 1.0]]);
        }
    }
}

#[test]
fn settings_that_the_class_does_not_compute_with_are_refused_by_key() {
    for (changes, said) in [
        (
            json!({"rescale_betas_zero_snr": true}),
            "rescale_betas_zero_snr must be false",
        ),
        (
            json!({"prediction_type": "sample"}),
            "prediction_type must be epsilon or v_prediction",
        ),
        (json!({"beta_end": 1.5}), "beta_end must be above 0 and below 1"),
        (json!({"trained_betas": [0.5]}), "trained_betas must have 1000 entries"),
        (json!({"num_train_timesteps": 0}), "num_train_timesteps"),
        (json!({"snr_shift_scale": 2.0}), "snr_shift_scale"),
    ] {
        let error = format!("{:#}", ancestral(&changes).unwrap_err());
        assert!(error.contains(said), "{changes}: {error}");
    }
    let most = ancestral(&json!({"num_train_timesteps": 3, "trained_betas": [0.999999999, 0.9, 0.9]})).unwrap();
    assert!(format!("{:#}", most.start(2, None).unwrap_err()).contains("nothing of the sample"));
    // What other classes of diffusers leave in a file does nothing in this one.
    let left = json!({"clip_sample": false, "set_alpha_to_one": false, "skip_prk_steps": true});
    assert!(ancestral(&left).is_ok());
}

fn objective(scheduler: &Scheduler, gamma: Option<f64>, noise_offset: f64) -> anyhow::Result<Objective> {
    let config = timesteps::Config {
        min_snr_gamma: gamma,
        noise_offset,
        ..timesteps::Config::default()
    };
    Objective::new(scheduler, &config)
}

#[test]
fn losses_weigh_as_min_snr_weighs_them_in_torch() {
    let answers = answers();
    let velocity = json!({"prediction_type": "v_prediction", "rescale_betas_zero_snr": true});
    for (prediction, scheduler) in [
        ("epsilon", ancestral(&json!({}))),
        ("v_prediction", make("CogVideoXDDIMScheduler", &velocity)),
        (
            "sample",
            make("CogVideoXDDIMScheduler", &json!({"prediction_type": "sample"})),
        ),
    ] {
        let scheduler = scheduler.unwrap();
        let clean = Tensor::ones((6, 1, 2, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let mix = |gamma| {
            let objective = objective(&scheduler, gamma, 0.0).unwrap();
            objective.mix(&clean, &clean, &Timesteps::tabled(&TIMESTEPS)).unwrap()
        };
        let weights = mix(Some(5.0)).weight.unwrap();
        assert_eq!(weights.dims(), [6, 1, 1, 1, 1]);
        let error = relative_error(
            &weights.flatten_all().unwrap(),
            &answers[&format!("weights.{prediction}")],
        );
        assert!(error <= 1e-6, "{prediction}: {error:e}");
        assert!(mix(None).weight.is_none());
    }
}

#[test]
fn an_offset_is_drawn_behind_the_noise_for_each_channel_of_each_sample() {
    let scheduler = ancestral(&json!({})).unwrap();
    let offset = |amount| {
        let mut rng = Rng::new(42);
        let noise = Tensor::from_vec(rng.randn(2 * 3 * 12), (2, 3, 2, 2, 3), &Device::Cpu).unwrap();
        let offset = objective(&scheduler, None, amount)
            .unwrap()
            .offset(noise, &mut rng)
            .unwrap();
        (offset, rng.randn(1))
    };
    let ((ours, _), (plain, next)) = (offset(0.1), offset(0.0));
    assert!(relative_error(&ours, &answers()["offset"]) <= 1e-6);
    let mut rng = Rng::new(42);
    let undisturbed = rng.randn(72);
    assert_eq!(plain.flatten_all().unwrap().to_vec1::<f32>().unwrap(), undisturbed);
    assert_eq!(next, rng.randn(1), "without an offset nothing is drawn");
}

#[test]
fn models_of_flow_matching_have_no_use_for_either() {
    let flow = make("FlowMatchEulerDiscreteScheduler", &json!({})).unwrap();
    let error = format!("{:#}", objective(&flow, Some(5.0), 0.02).unwrap_err());
    let said = "diffusion.min_snr_gamma, diffusion.noise_offset: this checkpoint learns flow matching";
    assert!(error.contains(said), "{error}");
    assert!(objective(&flow, None, 0.0).is_ok());
    let mut problems = vtrain::problems::Problems::default();
    let config = timesteps::Config {
        min_snr_gamma: Some(0.0),
        noise_offset: -1.0,
        ..timesteps::Config::default()
    };
    config.check(&mut problems);
    let said = format!("{problems:?}");
    assert!(
        said.contains("min_snr_gamma") && said.contains("noise_offset"),
        "{said}"
    );
}
