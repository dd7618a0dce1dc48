//! Schedulers against diffusers. `tests/fixtures/cogvideox/schedulers.safetensors` is written by
//! `scripts/fixtures/cogvideox/schedulers.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use vtrain::diffusion::guidance::dynamic_scale;
use vtrain::diffusion::schedulers::{Config, Scheduler, spacing};
use vtrain::rng::Rng;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox")
}

fn answers() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join("schedulers.safetensors"), &Device::Cpu).unwrap()
}

/// A scheduler with the settings that the fixtures were made with, and these changes.
fn make(class: &str, changes: &[(&str, serde_json::Value)]) -> Scheduler {
    let mut json = serde_json::json!({
        "_class_name": class, "clip_sample": false, "prediction_type": "v_prediction", "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": true, "snr_shift_scale": 1.0,
    });
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    Scheduler::new(Config::parse(&json.to_string()).unwrap()).unwrap()
}

const DDIM: &str = "CogVideoXDDIMScheduler";
const DPM: &str = "CogVideoXDPMScheduler";

fn whole(timesteps: &Tensor) -> Vec<f64> {
    timesteps.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// |a - b| / |b|
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    let (a, b) = (a.to_dtype(DType::F64).unwrap(), b.to_dtype(DType::F64).unwrap());
    assert_eq!(a.dims(), b.dims());
    norm(&(a - &b).unwrap()) / norm(&b)
}

#[test]
fn the_noise_of_every_timestep_is_diffusers_own() {
    let answers = answers();
    for shift in [1.0, 3.0] {
        for zero in [false, true] {
            let key = format!("alphas_cumprod.shift{shift}{}", if zero { ".zero-snr" } else { "" });
            let changes = [
                ("snr_shift_scale", shift.into()),
                ("rescale_betas_zero_snr", zero.into()),
            ];
            let scheduler = make(DDIM, &changes);
            let expected: Vec<f64> = answers[&key].to_vec1().unwrap();
            for (a, b) in scheduler.process().unwrap().alphas.all().iter().zip(&expected) {
                assert!((a - b).abs() <= 1e-12 * b.abs() + 1e-15, "{key}: {a} {b}");
            }
        }
    }
}

#[test]
fn other_beta_schedules_are_computed_in_f32_as_torch_does() {
    // from diffusers import CogVideoXDDIMScheduler as S
    // a = S(beta_schedule=..., snr_shift_scale=3.0, rescale_betas_zero_snr=True).alphas_cumprod
    // [a[i].item() for i in (0, 1, 500, 998)]
    let linear = [
        0.9974543452262878,
        0.9948258996009827,
        0.05165049061179161,
        2.0276480938719033e-08,
    ];
    let cosine = [
        0.9998762607574463,
        0.9997378587722778,
        0.24424386024475098,
        7.59240265324479e-07,
    ];
    for (name, expected) in [("linear", linear), ("squaredcos_cap_v2", cosine)] {
        let scheduler = make(DDIM, &[("beta_schedule", name.into()), ("snr_shift_scale", 3.0.into())]);
        for (t, b) in [0, 1, 500, 998].into_iter().zip(expected) {
            let a = scheduler.process().unwrap().alphas.at(t).unwrap();
            assert!((a - b).abs() <= 2e-6 * b, "{name} {t}: {a} {b}");
        }
    }
}

#[test]
fn timesteps_are_those_of_diffusers_for_every_spacing() {
    let answers = answers();
    let mut seen = 0;
    for spacing in ["trailing", "leading", "linspace"] {
        let scheduler = make(DDIM, &[("timestep_spacing", spacing.into())]);
        for (key, expected) in answers.iter() {
            let Some(count) = key.strip_prefix(&format!("timesteps.{spacing}.")) else {
                continue;
            };
            let run = scheduler.start(count.parse().unwrap(), None).unwrap();
            assert_eq!(run.timesteps(), whole(expected), "{key}");
            seen += 1;
        }
    }
    assert!(seen >= 48, "only {seen}");
}

#[test]
fn a_run_ends_where_diffusers_ends_it() {
    let zero = ("rescale_betas_zero_snr", serde_json::Value::from(false));
    let last = ("set_alpha_to_one", serde_json::Value::from(false));
    let shift = ("snr_shift_scale", serde_json::Value::from(3.0));
    let spaced = |name: &str| ("timestep_spacing", serde_json::Value::from(name));
    let predicts = |name: &str| ("prediction_type", serde_json::Value::from(name));
    for (case, class, changes) in [
        ("ddim.2b", DDIM, vec![shift.clone()]),
        ("ddim.odd-count", DDIM, vec![]),
        ("ddim.leading", DDIM, vec![spaced("leading")]),
        ("ddim.linspace", DDIM, vec![spaced("linspace")]),
        ("ddim.not-zero-snr", DDIM, vec![zero.clone(), last.clone()]),
        ("ddim.epsilon", DDIM, vec![zero.clone(), predicts("epsilon")]),
        ("ddim.sample", DDIM, vec![predicts("sample")]),
        ("dpm.5b", DPM, vec![]),
        ("dpm.shifted", DPM, vec![shift]),
        ("dpm.odd-count", DPM, vec![]),
        ("dpm.leading", DPM, vec![spaced("leading")]),
        ("dpm.linspace", DPM, vec![spaced("linspace")]),
        ("dpm.not-zero-snr", DPM, vec![zero, last]),
    ] {
        walk(case, &make(class, &changes));
    }
}

/// Feeds the fixture's predictions through a run and compares every step. The noise comes from `manual_seed(42)`.
fn walk(case: &str, scheduler: &Scheduler) {
    let answers = answers();
    let of = |what: &str| answers[&format!("{case}.{what}")].clone();
    let (outputs, samples, originals) = (of("model_output"), of("sample"), of("original"));
    let mut sample = of("start");
    let mut rng = Rng::new(42);
    let mut run = scheduler.start(outputs.dim(0).unwrap(), None).unwrap();
    assert_eq!(run.timesteps(), whole(&of("timesteps")), "{case}");
    let mut at = 0;
    while run.timestep().is_some() {
        let mut noise = None;
        for _ in 0..run.noise_draws().unwrap() {
            let values = rng.randn(sample.elem_count());
            noise = Some(Tensor::from_vec(values, sample.shape(), &Device::Cpu).unwrap());
        }
        let stepped = run.step(&outputs.get(at).unwrap(), &sample, noise.as_ref()).unwrap();
        for (name, a, b) in [
            ("sample", &stepped.sample, &samples),
            ("original", &stepped.original, &originals),
        ] {
            let error = relative_error(a, &b.get(at).unwrap());
            assert!(error <= 1e-5, "{case} step {at} {name}: {error:e}");
        }
        sample = stepped.sample;
        at += 1;
    }
    assert_eq!(at, outputs.dim(0).unwrap());
    assert!(run.step(&sample, &sample, None).is_err(), "{case}: the run is over");
}

#[test]
fn noise_and_velocity_for_training_are_those_of_diffusers() {
    let answers = answers();
    let of = |what: &str| &answers[&format!("noising.{what}")];
    let scheduler = make(DPM, &[]);
    let process = scheduler.process().unwrap();
    let timesteps: Vec<i64> = of("timestep").to_vec1().unwrap();
    let noisy = process.add_noise(of("clean"), of("noise"), &timesteps).unwrap();
    assert!(relative_error(&noisy, of("noisy")) <= 1e-6);
    let velocity = process.velocity(of("clean"), of("noise"), &timesteps).unwrap();
    assert!(relative_error(&velocity, of("velocity")) <= 1e-6);
    assert!(process.add_noise(of("clean"), of("noise"), &timesteps[1..]).is_err());
    assert!(process.add_noise(of("clean"), of("noise"), &[0, 1, 2, 1000]).is_err());
}

#[test]
fn the_schedulers_of_the_checkpoints_load_by_class() {
    for (name, is_dpm) in [
        ("cogvideox-2b", false),
        ("cogvideox-5b", true),
        ("cogvideox-1.5-5b-i2v", true),
    ] {
        let scheduler = Scheduler::load(&fixtures().join(name).join("scheduler")).unwrap();
        assert_eq!(matches!(scheduler, Scheduler::Dpm(_)), is_dpm, "{name}");
    }
}

#[test]
fn a_setting_that_is_not_understood_is_named_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    for (json, said) in [
        (
            r#"{"_class_name": "CogVideoXDDIMScheduler", "thresholding": true}"#,
            "thresholding",
        ),
        (r#"{"_class_name": "EulerDiscreteScheduler"}"#, "EulerDiscreteScheduler"),
        (r#"{"beta_start": 0.1}"#, "_class_name"),
        (
            r#"{"_class_name": "CogVideoXDPMScheduler", "prediction_type": "flow"}"#,
            "prediction_type",
        ),
        (
            r#"{"_class_name": "CogVideoXDPMScheduler", "num_train_timesteps": 0}"#,
            "num_train_timesteps",
        ),
        (
            r#"{"_class_name": "CogVideoXDPMScheduler", "beta_end": 1.5}"#,
            "beta_end",
        ),
        (
            r#"{"_class_name": "CogVideoXDPMScheduler", "trained_betas": [0.1]}"#,
            "trained_betas",
        ),
        (
            r#"{"_class_name": "CogVideoXDPMScheduler", "snr_shift_scale": 0}"#,
            "snr_shift_scale",
        ),
    ] {
        std::fs::write(folder.path().join("scheduler_config.json"), json).unwrap();
        let error = format!("{:#}", Scheduler::load(folder.path()).unwrap_err());
        assert!(
            error.contains("scheduler_config.json") && error.contains(said),
            "{error}"
        );
    }
}

#[test]
fn all_wrong_settings_are_named_at_once() {
    let json = r#"{"_class_name": "UniPCMultistepScheduler", "solver_order": 4, "flow_shift": 0, "predict_x0": false}"#;
    let error = format!("{:#}", Config::parse(json).unwrap_err());
    for said in [
        "predict_x0 must be true, others are not supported, found false",
        "flow_shift must be a number above 0, found 0.0",
        "solver_order must lie between 1 and 3, found 4",
        "prediction_type must be \"flow_prediction\", others are not supported, found epsilon",
        "use_flow_sigmas must be true, others are not supported, found false",
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn too_many_steps_or_none_are_refused() {
    let scheduler = make(DDIM, &[]);
    assert!(scheduler.start(0, None).is_err());
    assert!(scheduler.start(1001, None).is_err());
    let beyond = make(
        DDIM,
        &[("timestep_spacing", "leading".into()), ("steps_offset", 1.into())],
    );
    assert!(beyond.start(50, None).is_ok());
    assert!(format!("{:#}", beyond.start(1000, None).unwrap_err()).contains("steps_offset"));
}

#[test]
fn all_noise_tells_an_epsilon_network_nothing() {
    let scheduler = make(DDIM, &[("prediction_type", "epsilon".into())]);
    let x = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
    let error = scheduler
        .start(4, None)
        .unwrap()
        .step(&x, &x, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("prediction_type"), "{error}");
}

#[test]
fn strength_leaves_out_the_first_steps() {
    // CogVideoXVideoToVideoPipeline.get_timesteps: init = min(int(N * strength), N); start = max(N - init, 0)
    for (num_steps, strength, start) in [(50, 0.8, 10), (4, 1.0, 0), (4, 0.6, 2), (10, 0.29, 8), (100, 0.29, 72)] {
        assert_eq!(spacing::skipped(num_steps, strength).unwrap(), start);
    }
    for (num_steps, strength) in [(4, 0.2), (4, 0.0), (4, 1.01), (4, -0.1), (4, f64::NAN)] {
        assert!(spacing::skipped(num_steps, strength).is_err(), "{strength}");
    }
    let scheduler = make(DDIM, &[]);
    let run = scheduler.start(4, None).unwrap().skip_by(0.6).unwrap();
    assert_eq!((run.timesteps(), run.num_steps()), (&[499.0, 249.0][..], 2));
}

#[test]
fn a_step_count_whose_timesteps_run_over_still_ends() {
    // 61 trailing steps are 62 timesteps, and a[-1] is torch's last:
    // s = CogVideoXDDIMScheduler(...); s.set_timesteps(61)
    // s.step(torch.full((1,), 0.25), -1, torch.full((1,), 2.0), return_dict=False)[0]  # -0.25
    let scheduler = make(DDIM, &[]);
    let mut run = scheduler.start(61, None).unwrap();
    assert_eq!(run.timesteps().last(), Some(&-1.0));
    let output = Tensor::full(0.25f32, 1, &Device::Cpu).unwrap();
    let sample = Tensor::full(2f32, 1, &Device::Cpu).unwrap();
    let mut last = None;
    while run.timestep().is_some() {
        last = Some(run.step(&output, &sample, None).unwrap().sample);
    }
    assert_eq!(last.unwrap().to_vec1::<f32>().unwrap(), [-0.25]);
}

#[test]
fn dynamic_guidance_jumps_as_in_the_pipeline() {
    // 1 + g * ((1 - math.cos(math.pi * ((n - t) / n) ** 5.0)) / 2)
    for (scale, num_steps, timestep, expected) in [
        (6.0, 4, 999, 4.755880591967707),
        (6.0, 4, 749, 1.9379524472878416),
        (6.0, 50, 999, 2.291487174551452),
        (6.0, 50, 19, 1.123397939968981),
        (6.0, 50, 499, 1.5212656935026643),
        (3.5, 7, 0, 4.5),
    ] {
        let found = dynamic_scale(scale, num_steps, f64::from(timestep));
        assert!((found - expected).abs() < 1e-12, "{timestep}: {found} {expected}");
    }
}

#[test]
fn a_config_may_be_given_the_other_class() {
    let Config::Ddim(config) = Config::load(&fixtures().join("cogvideox-2b/scheduler")).unwrap() else {
        panic!("CogVideoX-2b comes with DDIM");
    };
    assert!(matches!(
        Scheduler::new(Config::Dpm(config)).unwrap(),
        Scheduler::Dpm(_)
    ));
}
