//! Schedulers of flow matching against diffusers. `tests/fixtures/flow/schedulers.*` are written by
//! `scripts/fixtures/make_flow.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use vtrain::diffusion::schedulers::{Config, Run, Scheduler, StepSpacing};
use vtrain::rng::Rng;

#[derive(Deserialize)]
struct Case {
    name: String,
    config: serde_json::Value,
    steps: usize,
    seq_len: Option<usize>,
    strength: Option<f64>,
    #[serde(default)]
    linear_quadratic: bool,
}

impl Case {
    fn scheduler(&self) -> Scheduler {
        make(&self.config).unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    fn start<'s>(&self, scheduler: &'s Scheduler) -> Run<'s> {
        let spacing = match self.linear_quadratic {
            false => StepSpacing::OfScheduler,
            true => StepSpacing::LinearQuadratic,
        };
        let run = scheduler.start_spaced(spacing, self.steps, self.seq_len).unwrap();
        match self.strength {
            None => run,
            Some(strength) => run.skip_by(strength).unwrap(),
        }
    }

    fn is_inverted(&self) -> bool {
        self.config["invert_sigmas"] == true
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/flow")
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(fixtures().join("schedulers.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 35, "only {}", cases.len());
    cases
}

fn answers() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join("schedulers.safetensors"), &Device::Cpu).unwrap()
}

fn make(config: &serde_json::Value) -> anyhow::Result<Scheduler> {
    Scheduler::new(Config::parse(&config.to_string())?)
}

/// max |a - b| / max |b|
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let most = |x: &Tensor| {
        let x = x.to_dtype(DType::F64).unwrap().abs().unwrap();
        x.max_all().unwrap().to_scalar::<f64>().unwrap()
    };
    most(&(a - b).unwrap()) / most(b)
}

#[test]
fn sigmas_and_timesteps_are_those_of_diffusers() {
    let answers = answers();
    for case in cases() {
        let scheduler = case.scheduler();
        let run = case.start(&scheduler);
        let sigmas: Vec<f32> = answers[&format!("{}.sigmas", case.name)].to_vec1().unwrap();
        let timesteps: Vec<f64> = answers[&format!("{}.timesteps", case.name)].to_vec1().unwrap();
        let found = run.sigmas().unwrap();
        assert_eq!((found.len(), run.timesteps().len()), (sigmas.len(), timesteps.len()));
        for (a, b) in found.iter().zip(&sigmas) {
            assert!((a - b).abs() <= 1.2e-7 * b.abs(), "{}: {a} {b}", case.name);
        }
        for (a, b) in run.timesteps().iter().zip(&timesteps) {
            assert!((a - b).abs() <= 1.2e-7 * b.abs(), "{}: {a} {b}", case.name);
        }
    }
}

#[test]
fn a_run_goes_through_the_samples_of_diffusers() {
    let answers = answers();
    let mut worst = (0.0, String::new());
    for case in cases() {
        let of = |what: &str| answers[&format!("{}.{what}", case.name)].clone();
        let (outputs, samples) = (of("model_output"), of("sample"));
        let scheduler = case.scheduler();
        let mut run = case.start(&scheduler);
        let mut rng = Rng::new(42);
        let mut sample = of("start");
        for at in 0..outputs.dim(0).unwrap() {
            let mut noise = None;
            for _ in 0..run.noise_draws().unwrap() {
                let values = rng.randn(sample.elem_count());
                noise = Some(Tensor::from_vec(values, sample.shape(), &Device::Cpu).unwrap());
            }
            sample = run
                .step(&outputs.get(at).unwrap(), &sample, noise.as_ref())
                .unwrap()
                .sample;
            let error = relative_error(&sample, &samples.get(at).unwrap());
            if error > worst.0 {
                worst = (error, format!("{} step {at}", case.name));
            }
        }
        assert_eq!(run.remaining(), 0, "{}", case.name);
        assert!(
            run.step(&sample, &sample, None).is_err(),
            "{}: the run is over",
            case.name
        );
    }
    assert!(worst.0 <= 2e-6, "{}: {:e}", worst.1, worst.0);
}

#[test]
fn a_clip_gets_the_noise_of_the_first_step() {
    let answers = answers();
    // Mochi's inverted sigmas say how much is sample; diffusers' `scale_noise` overlooks it.
    for case in cases().iter().filter(|case| !case.is_inverted()) {
        let of = |what: &str| answers[&format!("{}.{what}", case.name)].clone();
        let scheduler = case.scheduler();
        let noisy = case.start(&scheduler).add_noise(&of("clean"), &of("start")).unwrap();
        let error = relative_error(&noisy, &of("noisy"));
        assert!(error <= 1e-6, "{}: {error:e}", case.name);
    }
}

#[test]
fn a_right_prediction_leads_to_the_clean_sample() {
    let answers = answers();
    for case in cases() {
        let of = |what: &str| answers[&format!("{}.{what}", case.name)].clone();
        let (clean, noise) = (of("clean"), of("start"));
        let scheduler = case.scheduler();
        let mut run = case.start(&scheduler);
        let mut sample = run.add_noise(&clean, &noise).unwrap();
        let inverted = case.is_inverted();
        let velocity = if inverted { &clean - &noise } else { &noise - &clean }.unwrap();
        while run.timestep().is_some() && run.noise_draws().unwrap() == 0 {
            let stepped = run.step(&velocity, &sample, None).unwrap();
            assert!(relative_error(&stepped.original, &clean) <= 1e-5, "{}", case.name);
            sample = stepped.sample;
        }
        let last = *run.sigmas().unwrap().last().unwrap();
        if run.remaining() == 0 && (last == 0.0 || inverted) {
            assert!(relative_error(&sample, &clean) <= 1e-5, "{}", case.name);
        }
    }
}

#[test]
fn settings_are_checked_by_class_and_named() {
    let euler = |key: &str, value: serde_json::Value| serde_json::json!({"_class_name": "FlowMatchEulerDiscreteScheduler", key: value});
    let unipc = |key: &str, value: serde_json::Value| {
        let mut json = serde_json::json!({
            "_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true, "prediction_type": "flow_prediction",
        });
        json[key] = value;
        json
    };
    for (json, said) in [
        (euler("snr_shift_scale", 3.0.into()), "snr_shift_scale"),
        (euler("use_beta_sigmas", true.into()), "use_beta_sigmas"),
        (euler("shift", 0.into()), "shift"),
        (euler("shift_terminal", 1.0.into()), "shift_terminal"),
        (euler("time_shift_type", "cubic".into()), "time_shift_type"),
        (euler("num_train_timesteps", 0.into()), "num_train_timesteps"),
        (unipc("snr_shift_scale", 3.0.into()), "snr_shift_scale"),
        (unipc("use_flow_sigmas", false.into()), "use_flow_sigmas"),
        (unipc("prediction_type", "epsilon".into()), "prediction_type"),
        (unipc("solver_order", 4.into()), "solver_order"),
        (unipc("solver_type", "bh3".into()), "solver_type"),
        (unipc("predict_x0", false.into()), "predict_x0"),
        (unipc("thresholding", true.into()), "thresholding"),
        (unipc("lower_order_final", false.into()), "lower_order_final"),
        (unipc("use_karras_sigmas", true.into()), "use_karras_sigmas"),
        (unipc("use_dynamic_shifting", true.into()), "use_dynamic_shifting"),
        (unipc("flow_shift", (-1.0).into()), "flow_shift"),
    ] {
        let error = format!("{:#}", make(&json).unwrap_err());
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn runs_that_would_not_descend_are_refused() {
    let euler = |changes: serde_json::Value| {
        let mut json = serde_json::json!({"_class_name": "FlowMatchEulerDiscreteScheduler"});
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        make(&json).unwrap()
    };
    let refused = |scheduler: &Scheduler, steps, seq_len| format!("{:#}", scheduler.start(steps, seq_len).unwrap_err());
    let plain = euler(serde_json::json!({}));
    assert!(refused(&plain, 0, None).contains("number of steps"));
    assert!(refused(&plain, 1001, Some(9)).contains("number of steps"));
    let spaced = |steps| plain.start_spaced(StepSpacing::LinearQuadratic, steps, None);
    assert!(format!("{:#}", spaced(0).unwrap_err()).contains("number of steps"));
    assert_eq!(spaced(1).unwrap().sigmas().unwrap(), [1.0, 0.0]); // diffusers divides by 0
    let dynamic = euler(serde_json::json!({"use_dynamic_shifting": true}));
    assert!(refused(&dynamic, 4, None).contains("use_dynamic_shifting"));
    assert!(refused(&dynamic, 4, Some(usize::MAX)).contains("do not descend"));
    let terminal = euler(serde_json::json!({"shift_terminal": 0.1}));
    assert!(refused(&terminal, 1, Some(9)).contains("shift_terminal"));
    let steep = euler(serde_json::json!({"shift": 1e12}));
    assert!(refused(&steep, 4, Some(9)).contains("do not descend"));
    let steep = make(&serde_json::json!({
        "_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true, "prediction_type": "flow_prediction",
        "flow_shift": 1e7,
    }));
    assert!(refused(&steep.unwrap(), 4, None).contains("do not descend"));
    assert!(plain.process().is_err(), "it has no table of noise");
}
