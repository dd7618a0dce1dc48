//! A whole run as users see it: precomputed, trained, validated, exported.

use std::fs;
use std::path::Path;
use std::time::Duration;

use candle_core::{Device, Tensor};
use vtrain::lora::file;
use vtrain::lora::format::Format;
use vtrain::models::registry;
use vtrain::video::Clip;

use super::{FINAL, Run, fixture, model, relative, root, shapes, stderr};
use crate::watching;

/// All twelve shipped clips in two buckets, validation at the start, in the middle and at the end.
fn whole(model: &Path, batch_size: usize, steps: usize) -> Run {
    let run = Run::new("");
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
         datasets: [{{path: {}, id_token: SHAPES, buckets: [[17, 64, 96], [33, 64, 96]]}}]\n\
         lora: {{rank: 4, alpha: 4}}\ntrain: {{steps: {steps}, batch_size: {batch_size}}}\n\
         optimizer: {{lr: 0.001}}\nlr_scheduler: {{name: constant}}\ncheckpoint: {{every: 20, limit: 2}}\n\
         validation:\n  every: 30\n  prompts:\n    \
         - {{prompt: 'SHAPES: a ball', num_frames: 9, height: 32, width: 48, steps: 3}}\n    \
         - {{prompt: a sun, num_frames: 9, height: 32, width: 48, steps: 2, guidance_scale: 1.0, seed: 5}}\n",
        model.display(),
        root().join("datasets/shapes").display()
    );
    fs::write(run.file(), text).unwrap();
    run
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn fifty_steps_over_two_buckets_leave_what_was_promised() {
    for batch_size in [1, 2] {
        let run = whole(&model(), batch_size, 50);
        run.train(&[]);
        let lines = run.metrics();
        assert_eq!(lines.len(), 50);
        for (i, line) in lines.iter().enumerate() {
            assert_eq!(line["step"].as_u64(), Some(i as u64 + 1));
            assert!(line["loss"].as_f64().unwrap().is_finite(), "{line}");
            assert!(line["grad_norm"].as_f64().unwrap() > 0.0, "{line}");
            assert_eq!(line["lr"].as_f64(), Some(0.001));
        }
        let out = run.out();
        for step in ["000000", "000030", "000050"] {
            for video in ["00-shapes-a-ball.mp4", "01-a-sun.mp4"] {
                let clip = Clip::open(&out.join(format!("validation/step-{step}/{video}"))).unwrap();
                assert_eq!((clip.height(), clip.width()), (32, 48));
            }
        }
        let checkpoints: Vec<_> = fs::read_dir(out.join("checkpoints"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(checkpoints.len(), 2, "{checkpoints:?}");
        assert!(out.join("checkpoints/step-000050/state.json").is_file());
        assert_eq!(run.adapter().len(), 16);
        let for_comfyui = file::read(&out.join("comfyui_lora.safetensors"), &registry::names()).unwrap();
        assert_eq!(for_comfyui.format, Format::ComfyUi);
        assert_eq!(for_comfyui.about["modelspec.trigger_phrase"], "SHAPES");
        for (layer, adapter) in &for_comfyui.layers {
            let same = |half: &str, ours: &Tensor| {
                let theirs = &run.adapter()[&format!("transformer.{layer}.{half}.weight")];
                assert_eq!(relative(ours, theirs), 0.0, "{layer}");
            };
            same("lora_A", &adapter.a);
            same("lora_B", &adapter.b);
        }
        assert_eq!(for_comfyui.layers.len(), 8);
        let card = fs::read_to_string(out.join("README.md")).unwrap();
        assert!(
            card.contains("SHAPES") && card.contains("validation/step-000050"),
            "{card}"
        );
    }
}

#[test]
fn the_base_models_video_is_made_without_the_adapter_that_the_run_starts_from() {
    let made = |init: bool| {
        let run = whole(&model(), 1, 1);
        if init {
            let init = fixture("init.safetensors");
            let init = format!("lora.init={}", init.display());
            run.train(&["--set", &init, "--set", "lora.alpha=8"]);
        } else {
            run.train(&[]);
        }
        let video = |step: &str| fs::read(run.out().join(format!("validation/step-{step}/01-a-sun.mp4"))).unwrap();
        (video("000000"), video("000001"))
    };
    let (fresh, from_file) = (made(false), made(true));
    assert!(fresh.0 == from_file.0, "both show the base model");
    assert!(from_file.0 != from_file.1, "an adapter that does something is seen");
}

#[test]
fn tensorboard_shows_the_frame_in_the_middle_of_each_validation_video() {
    let run = Run::new("");
    shapes(&run.folder.path().join("data"), 1);
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
         datasets: [{{path: data, buckets: [[5, 32, 48]]}}]\nlora: {{rank: 2, alpha: 2}}\ntrain: {{steps: 1}}\n\
         validation: {{prompts: [{{prompt: a ball, num_frames: 9, height: 32, width: 48, steps: 2, guidance_scale: 1.0}}]}}\n",
        model().display()
    );
    fs::write(run.file(), text).unwrap();
    run.train(&[]);
    let pictures = watching::pictures(&run.out());
    assert_eq!(pictures.len(), 2, "before the first step and behind it");
    let png = run.out().join("picture.png");
    for ((tag, step), picture) in pictures {
        let name = tag.strip_prefix("validation/").unwrap();
        let video = run.out().join(format!("validation/step-{step:06}/{name}.mp4"));
        let video = Clip::open(&video).unwrap();
        fs::write(&png, picture).unwrap();
        let shown = Clip::open(&png).unwrap().decode(&[0]).unwrap().data;
        let frames = video.decode(&(0..video.num_frames()).collect::<Vec<_>>()).unwrap();
        let distance = |frame: &[u8]| -> u64 { shown.iter().zip(frame).map(|(a, b)| u64::from(a.abs_diff(*b))).sum() };
        let distances: Vec<u64> = frames.iter().map(distance).collect();
        let middle = distances[distances.len() / 2];
        assert_eq!(
            distances.iter().min(),
            Some(&middle),
            "{tag} of step {step}: {distances:?}"
        );
        assert!(middle < 24 * shown.len() as u64, "{tag} of step {step}: {distances:?}");
    }
}

#[test]
fn a_second_run_needs_neither_text_encoder_nor_vae_and_starts_at_once() {
    needs_no_encoders(&model(), &["vae", "text_encoder", "tokenizer"]);
}

#[test]
fn nor_does_one_whose_vae_says_how_latents_are_normalised() {
    let model = root().join("tests/fixtures/ltx_video/ltx-0.9.5");
    needs_no_encoders(&model, &["vae", "text_encoder", "tokenizer"]);
}

#[test]
fn nor_does_one_from_images_need_an_image_encoder() {
    let model = root().join("tests/fixtures/wan/wan-2.1-i2v");
    let parts = ["vae", "text_encoder", "tokenizer", "image_encoder", "image_processor"];
    needs_no_encoders(&model, &parts);
}

/// Trains twice, the second time without these parts of the checkpoint.
fn needs_no_encoders(model: &Path, parts: &[&str]) {
    let checkpoint = tempfile::tempdir().unwrap();
    copy(model, checkpoint.path());
    let run = whole(checkpoint.path(), 1, 3);
    let none = ["--set", "validation.prompts=[]"];
    run.train(&none);
    for part in parts {
        fs::remove_dir_all(checkpoint.path().join(part)).unwrap();
    }
    let again = [&none[..], &["--resume", "never"]].concat();
    let started = std::time::Instant::now();
    let mut child = run
        .command(&again)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = loop {
        if child.try_wait().unwrap().is_some() {
            break child.wait_with_output().unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(600), "the second run hangs");
        std::thread::sleep(Duration::from_millis(1));
    };
    println!("{:?} for three steps with a warm cache", started.elapsed());
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("the text encoder and the VAE are not loaded"), "{said}");
    assert!(!said.contains("loading the"), "{said}");
    assert_eq!(run.metrics().len(), 3);
}

#[test]
fn a_validation_that_fails_on_the_way_is_told_of_and_training_goes_on() {
    let run = whole(&model(), 1, 2);
    run.train(&["--set", "train.steps=1"]);
    // Where the folder of its videos should be.
    fs::write(run.out().join("validation/step-000002"), "").unwrap();
    let output = run.train(&[]);
    assert_eq!(
        stderr(&output).matches("training goes on").count(),
        2,
        "{}",
        stderr(&output)
    );
    assert_eq!(run.metrics().len(), 2);
    assert!(run.out().join(FINAL).is_file());
}

#[test]
fn a_validation_that_cannot_be_made_stops_the_run_before_it_begins() {
    let run = whole(&model(), 1, 2);
    let output = run
        .command(&["--set", "validation.prompts.0.height=33"])
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("validation.prompts[0]: 33x48") && said.contains("the nearest is 32x48"),
        "{said}"
    );
    assert!(!run.out().exists(), "{said}");
}

#[test]
fn a_loss_that_is_not_finite_three_times_ends_the_run_and_names_clip_and_timestep() {
    let run = Run::case("plain", 4);
    // Adapters so large that the network overflows.
    let tensors = candle_core::safetensors::load(fixture("init.safetensors"), &Device::Cpu).unwrap();
    let large: std::collections::HashMap<_, _> = tensors
        .into_iter()
        .map(|(name, tensor)| (name, (tensor * 1e19).unwrap()))
        .collect();
    let init = run.folder.path().join("large.safetensors");
    candle_core::safetensors::save(&large, &init).unwrap();
    let init = format!("lora.init={}", init.display());
    let output = run
        .command(&["--set", &init, "--set", "lora.alpha=4"])
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(
        said.contains("step 1 is left out") && said.contains("step 3: for the 3rd time"),
        "{said}"
    );
    assert!(said.contains("videos/") && said.contains("timestep ["), "{said}");
    assert_eq!(run.metrics().len(), 2, "the third is not written");
    assert!(!run.out().join(FINAL).exists());
}

#[test]
fn settings_that_the_model_would_ignore_are_said_before_anything_is_encoded() {
    let run = whole(&model(), 1, 1);
    for set in ["diffusion.shift=3.0", "train.first_frame_conditioning_p=0.5"] {
        let output = run.command(&["--set", set]).output().unwrap();
        let (key, said) = (set.split('=').next().unwrap(), stderr(&output));
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains(key) && said.to_lowercase().contains("remove it"),
            "{said}"
        );
        assert!(!run.out().join("precomputed").exists());
    }
}

#[test]
fn an_image_to_video_checkpoint_trains_on_its_clips_first_frames() {
    for name in [
        "cogvideox-5b-i2v",
        "cogvideox-1.5-5b-i2v",
        "cogvideox-1.5-5b",
        "cogvideox-2b",
    ] {
        let run = whole(&root().join("tests/fixtures/cogvideox").join(name), 2, 4);
        // Image to video needs an image to start from, so the prompts go. The size is the one with learned positions.
        let buckets = "datasets.0.buckets=[[17, 32, 48], [9, 32, 48]]";
        run.train(&["--set", "validation.prompts=[]", "--set", buckets]);
        assert!(run.column("loss").iter().all(|loss| loss.is_finite()), "{name}");
        assert!(run.column("grad_norm").iter().all(|norm| *norm > 0.0), "{name}");
    }
}

#[test]
fn bf16_on_the_cpu_learns_too() {
    let run = whole(&model(), 1, 6);
    run.train(&["--set", "model.dtype=bf16", "--set", "validation.prompts=[]"]);
    let exact = whole(&model(), 1, 6);
    exact.train(&["--set", "validation.prompts=[]"]);
    for (rough, exact) in run.column("loss").iter().zip(exact.column("loss")) {
        assert!((rough / exact - 1.0).abs() < 0.03, "{rough} for {exact}");
    }
}
