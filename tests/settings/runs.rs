//! Keys that only a whole run shows: in its log, its files, or its messages.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use vtrain::commands::precompute::open_model;
use vtrain::config::RunConfig;
use vtrain::optim::lr;
use vtrain::train::config;

use crate::training::pushed::{Seen, serve};
use crate::training::{FINAL, Run, model, relative, shapes, stderr};

/// A few clips, a learning rate that shows, and no validation.
fn run(clips: usize, more: &str) -> Run {
    let run = Run::new("");
    shapes(&run.folder.path().join("data"), clips);
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
         datasets: [{{path: data, buckets: [[9, 32, 48]]}}]\nlora: {{rank: 2, alpha: 2}}\n{more}",
        model().display()
    );
    fs::write(run.file(), text).unwrap();
    run
}

fn load(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// Names in a folder of the run's output, sorted.
fn names(run: &Run, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(run.out().join(folder)).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn rates_checkpoints_and_logs_come_as_the_run_file_says() {
    let run = run(2, "train: {steps: 5}\noptimizer: {lr: 0.01}\n");
    let powered = lr::Config {
        name: lr::Name::Polynomial,
        warmup_steps: 1,
        power: 2.0,
        ..Default::default()
    };
    let restarted = lr::Config {
        name: lr::Name::CosineWithRestarts,
        warmup_steps: 2,
        num_cycles: 3,
        ..Default::default()
    };
    let cases = [
        (powered, "{name: polynomial, warmup_steps: 1, power: 2}"),
        (
            restarted,
            "{name: cosine_with_restarts, warmup_steps: 2, num_cycles: 3}",
        ),
    ];
    for (schedule, text) in cases {
        run.train(&[
            "--resume=never",
            "--set",
            &format!("lr_scheduler={text}"),
            "--set=checkpoint={every: 1, limit: 3}",
            "--set=tracking.tensorboard=false",
        ]);
        let expected: Vec<f64> = (0..5).map(|step| schedule.at(0.01, step, 5)).collect();
        assert_eq!(run.column("lr"), expected, "{text}");
        assert_eq!(
            names(&run, "checkpoints"),
            ["step-000003", "step-000004", "step-000005"]
        );
        assert!(!run.out().join("tensorboard").exists());
    }
    run.train(&["--resume=never", "--set=checkpoint={every: 4, limit: 9}"]);
    assert_eq!(names(&run, "checkpoints"), ["step-000004", "step-000005"]);
    assert!(run.out().join("tensorboard").exists());
}

#[test]
fn videos_come_every_so_many_steps_and_at_both_ends() {
    let run = run(
        1,
        "train: {steps: 5}\nvalidation: {every: 2, prompts: [{prompt: a, num_frames: 1, height: 32, width: 48, steps: 1}]}\n",
    );
    run.train(&[]);
    let rounds = ["step-000000", "step-000002", "step-000004", "step-000005"];
    assert_eq!(names(&run, "validation"), rounds);
}

/// Three clips twice are six micro-batches: three steps of two.
#[test]
fn epochs_are_counted_in_micro_batches_of_all_ranks() {
    let run = run(3, "train: {epochs: 2, gradient_accumulation_steps: 2}\n");
    run.train(&[]);
    assert_eq!(run.column("step"), [1.0, 2.0, 3.0]);
    assert_eq!(run.column("samples_seen"), [2.0, 4.0, 6.0]);
    let steps = |epochs, accumulation, batches, ranks| {
        let config = config::Config {
            epochs: Some(epochs),
            gradient_accumulation_steps: accumulation,
            ..Default::default()
        };
        config.total_steps(batches, ranks)
    };
    assert_eq!(steps(3, 1, 10, 1), 30);
    assert_eq!(steps(3, 4, 10, 1), 8);
    assert_eq!(steps(3, 1, 10, 4), 8);
    assert_eq!(steps(3, 2, 10, 2), 8);
    assert_eq!(steps(1, 4, 10, 1), 3);
}

/// The checkpoint keeps what the last step left, and the averages beside it. The same command again writes the same file.
#[test]
fn the_finished_adapter_is_the_moving_average_where_there_is_one() {
    let run = run(
        2,
        "train: {steps: 4}\noptimizer: {lr: 0.01, ema: 0.9}\nlr_scheduler: {name: constant}\n",
    );
    run.train(&[]);
    let finished = fs::read(run.out().join(FINAL)).unwrap();
    let checkpoint = run.out().join("checkpoints/step-000004");
    let (last, optimizer) = (
        load(&checkpoint.join(FINAL)),
        load(&checkpoint.join("optimizer.safetensors")),
    );
    let (adapter, comfyui) = (run.adapter(), load(&run.out().join("comfyui_lora.safetensors")));
    assert_eq!(adapter.len(), 16);
    for (name, tensor) in &adapter {
        let layer = name
            .strip_prefix("transformer.")
            .unwrap()
            .strip_suffix(".weight")
            .unwrap();
        assert_eq!(relative(tensor, &optimizer[&format!("{layer}.ema")]), 0.0, "{name}");
        assert!(
            relative(tensor, &last[name]) > 1e-3,
            "{name} is what the last step left"
        );
        let same = comfyui
            .values()
            .any(|other| other.dims() == tensor.dims() && relative(other, tensor) == 0.0);
        assert!(same, "{name} is another one in ComfyUI's file");
    }
    fs::remove_file(run.out().join(FINAL)).unwrap();
    run.train(&[]);
    assert!(fs::read(run.out().join(FINAL)).unwrap() == finished);
}

#[test]
fn a_family_that_a_checkpoint_is_not_of_is_refused() {
    let run = run(1, "");
    let open = |set: &str| open_model(&RunConfig::load(&run.file(), &[set.to_string()]).unwrap());
    assert!(open("model.family=cogvideox").is_ok());
    let failure = open("model.family=wan").err().unwrap();
    let said = failure.to_string();
    assert!(
        said.contains("is a checkpoint of CogVideoX, but model.family is Wan"),
        "{said}"
    );
}

#[test]
fn a_revision_is_asked_of_the_hub_and_named() {
    let run = run(1, "");
    let refusing = Seen {
        refuses: Some(401),
        ..Seen::default()
    };
    let (endpoint, seen) = serve(refusing);
    let mut training = run.command(&["--set=model.path=somebody/style", "--set=model.revision=v2"]);
    let mut sampling = std::process::Command::new(env!("CARGO_BIN_EXE_vtrain"));
    sampling.args("sample --model somebody/style --revision v2 --prompt x --num-frames 1 --output".split(' '));
    sampling.arg(run.folder.path().join("a.mp4"));
    for command in [&mut training, &mut sampling] {
        command
            .env("HF_ENDPOINT", &endpoint)
            .env("HF_HOME", run.folder.path().join("home"));
        let output = command.env_remove("HF_HUB_OFFLINE").output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("somebody/style, revision v2"),
            "{}",
            stderr(&output)
        );
        let asked = std::mem::take(&mut seen.lock().unwrap().asked);
        assert!(
            !asked.is_empty() && asked.iter().all(|asked| asked.contains("v2")),
            "{asked:?}"
        );
    }
}
