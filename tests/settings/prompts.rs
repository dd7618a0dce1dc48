//! Keys of `validation.prompts` and flags of `vtrain sample`: a run's video of the base model is the clip that sampling with
//! the same settings makes, byte for byte, and each setting by itself makes another one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use vtrain::lora::adapters::Adapters;
use vtrain::lora::file;
use vtrain::models::{self, FamilyName};
use vtrain::nn::Load;
use vtrain::sample::{self, Request, Start};
use vtrain::train::validate;
use vtrain::video::{Frames, write};

use crate::training::{Run, model, root, shapes, stderr};

/// A prompt's keys in the order of `sample`'s flags; none is left at its default.
const BASE: [(&str, &str); 9] = [
    ("prompt", "a red ball"),
    ("negative_prompt", "blue"),
    ("num_frames", "5"),
    ("height", "32"),
    ("width", "48"),
    ("steps", "2"),
    ("guidance_scale", "3"),
    ("seed", "5"),
    ("fps", "10"),
];

/// One key each that differs from `BASE`.
const CHANGES: [(&str, &str); 10] = [
    ("prompt", "a cube"),
    ("negative_prompt", "rain"),
    ("num_frames", "9"),
    ("height", "48"),
    ("width", "64"),
    ("steps", "3"),
    ("guidance_scale", "1"),
    ("guidance_scale", "4"),
    ("seed", "6"),
    ("fps", "20"),
];

fn changed(change: Option<(&'static str, &'static str)>) -> Vec<(&'static str, &'static str)> {
    let mut keys = BASE.to_vec();
    if let Some((key, value)) = change {
        keys.iter_mut().find(|(name, _)| *name == key).unwrap().1 = value;
    }
    keys
}

fn run(model: &Path, prompts: &[String]) -> Run {
    let run = Run::new("");
    shapes(&run.folder.path().join("data"), 1);
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
         datasets: [{{path: data, buckets: [[5, 32, 48]]}}]\nlora: {{rank: 2, alpha: 2}}\ntrain: {{steps: 1}}\n\
         validation: {{prompts: [{}]}}\n",
        model.display(),
        prompts.join(", ")
    );
    fs::write(run.file(), text).unwrap();
    run
}

/// The video of the base model for a prompt, by its place among the prompts.
fn video(run: &Run, place: usize, prompt: &str) -> Vec<u8> {
    let name = format!("validation/step-000000/{}.mp4", validate::name(place, prompt));
    fs::read(run.out().join(name)).unwrap()
}

/// `vtrain sample` on the CPU in f32, unless these flags say otherwise.
fn sampled(model: &Path, keys: &[(&str, &str)], more: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
    command.arg("sample").arg("--model").arg(model);
    for (key, value) in keys {
        command.arg(format!("--{}", key.replace('_', "-"))).arg(value);
    }
    if !more.contains(&"--dtype") {
        command.args(["--dtype", "f32"]);
    }
    let output = command.args(["--device", "cpu"]).args(more).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn videos_of_the_base_model_are_the_clips_that_sampling_makes_key_by_key() {
    let cases: Vec<Vec<(&str, &str)>> = [None]
        .into_iter()
        .chain(CHANGES.into_iter().map(Some))
        .map(changed)
        .collect();
    let prompt = |keys: &Vec<(&str, &str)>| {
        let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        format!("{{{}}}", keys.join(", "))
    };
    let run = run(&model(), &cases.iter().map(prompt).collect::<Vec<_>>());
    run.train(&[]);
    let base = video(&run, 0, BASE[0].1);
    for (place, keys) in cases.iter().enumerate() {
        let ours = video(&run, place, keys[0].1);
        let file = run.folder.path().join("sampled.mp4");
        sampled(&model(), keys, &["--output", file.to_str().unwrap()]);
        assert!(
            ours == fs::read(&file).unwrap(),
            "{keys:?}: sampling makes another clip"
        );
        assert!(place == 0 || ours != base, "{:?} changes nothing", CHANGES[place - 1]);
    }
}

/// A model that embeds its guidance scale: what else guides it, and steps that are given.
#[test]
fn scales_and_sigmas_of_a_distilled_model_reach_its_videos_from_prompts_and_flags_alike() {
    let model = root().join("tests/fixtures/hunyuan_video/checkpoints/t2v");
    let cases: [(&str, &[&str]); 5] = [
        ("guidance_scale: 6", &["--guidance-scale", "6"]),
        ("guidance_scale: 1", &["--guidance-scale", "1"]),
        (
            "guidance_scale: 6, true_cfg_scale: 3",
            &["--guidance-scale", "6", "--true-cfg-scale", "3"],
        ),
        (
            "guidance_scale: 6, sigmas: [1.0, 0.4]",
            &["--guidance-scale", "6", "--sigmas", "1.0,0.4"],
        ),
        (
            "guidance_scale: 6, timesteps: [1000, 400]",
            &["--guidance-scale", "6", "--timesteps", "1000,400"],
        ),
    ];
    let common =
        "prompt: a red ball, negative_prompt: blue, num_frames: 5, height: 32, width: 48, steps: 2, seed: 5, fps: 10";
    let prompts: Vec<String> = cases.iter().map(|(keys, _)| format!("{{{common}, {keys}}}")).collect();
    let run = run(&model, &prompts);
    run.train(&[]);
    let keys: Vec<(&str, &str)> = BASE
        .iter()
        .copied()
        .filter(|(key, _)| *key != "guidance_scale" && *key != "steps")
        .collect();
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for (place, (_, flags)) in cases.iter().enumerate() {
        let ours = video(&run, place, BASE[0].1);
        let file = run.folder.path().join("sampled.mp4");
        let steps: &[&str] = match flags.contains(&"--sigmas") || flags.contains(&"--timesteps") {
            true => &[],
            false => &["--steps", "2"],
        };
        let more = [*flags, steps, &["--output", file.to_str().unwrap()]].concat();
        sampled(&model, &keys, &more);
        assert!(
            ours == fs::read(&file).unwrap(),
            "{flags:?}: sampling makes another clip"
        );
        assert!(!seen.contains(&ours), "{flags:?} change nothing");
        seen.push(ours);
    }
}

#[test]
fn a_cache_between_steps_reaches_the_videos_of_a_run_as_it_does_the_clips_of_sample() {
    let cache = "taylorseer:interval=3,order=0,before=1";
    let keys = changed(Some(("steps", "4")));
    let prompt: Vec<String> = keys.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    let run = run(&model(), &[format!("{{{}}}", prompt.join(", "))]);
    run.train(&["--set", &format!("validation.cache={cache}")]);
    let file = run.folder.path().join("sampled.mp4");
    let output = ["--output", file.to_str().unwrap()];
    sampled(&model(), &keys, &output);
    let plain = fs::read(&file).unwrap();
    sampled(&model(), &keys, &[&["--cache", cache], &output[..]].concat());
    let cached = fs::read(&file).unwrap();
    assert!(cached != plain, "the cache changes nothing");
    assert!(video(&run, 0, BASE[0].1) == cached, "the run's video is another");
}

/// Two pictures, as files of a folder.
fn pictures(folder: &Path) -> [PathBuf; 2] {
    [40, 200].map(|gray| {
        let frames = Frames {
            data: vec![gray; 32 * 48 * 3],
            num_frames: 1,
            height: 32,
            width: 48,
        };
        let out = folder.join(format!("{gray}/"));
        write(&out.join(""), &frames, 1.0).unwrap();
        out.join("00000.png")
    })
}

#[test]
fn a_video_starts_from_the_image_that_its_prompt_names() {
    let model = root().join("tests/fixtures/cogvideox/cogvideox-5b-i2v");
    let folder = tempfile::tempdir().unwrap();
    let images = pictures(folder.path());
    let keys = &BASE[..];
    let prompt = |image: &PathBuf| {
        let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        format!("{{{}, image: {}}}", keys.join(", "), image.display())
    };
    let run = run(&model, &images.iter().map(prompt).collect::<Vec<_>>());
    run.train(&[]);
    for (place, image) in images.iter().enumerate() {
        let file = folder.path().join("sampled.mp4");
        let more = ["--image", image.to_str().unwrap(), "--output", file.to_str().unwrap()];
        sampled(&model, keys, &more);
        assert!(
            video(&run, place, BASE[0].1) == fs::read(&file).unwrap(),
            "{}",
            image.display()
        );
    }
    assert!(video(&run, 0, BASE[0].1) != video(&run, 1, BASE[0].1));
}

/// The latents that `vtrain sample` leaves are those of the sampler under the same request.
#[test]
fn flags_of_sample_that_no_prompt_has_reach_the_sampler() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (clip, file, noise, out) = (path("clip.mp4"), path("latents"), path("noise"), path("out.mp4"));
    sampled(
        &model(),
        &changed(Some(("seed", "9"))),
        &["--output", &clip, "--output-latents", &noise],
    );
    let adapter = root().join("tests/fixtures/cogvideox/lora/pytorch_lora_weights.safetensors");
    let base = Request {
        prompt: BASE[0].1.into(),
        negative_prompt: BASE[1].1.into(),
        num_frames: 5,
        height: 32,
        width: 48,
        steps: 2,
        guidance: vtrain::diffusion::guidance::Guidance::classifier_free(3.0),
        step_list: None,
        scheduler: None,
        dynamic_guidance: false,
        seed: 5,
        fps: 10.0,
        start: Start::Text,
        latents: None,
        cache: Default::default(),
    };
    let read = |file: &str| candle_core::safetensors::load(file, &Device::Cpu).unwrap()["latents"].clone();
    let started = |strength| Request {
        start: Start::Clip(sample::read(Path::new(&clip), 5, (32, 48)).unwrap(), strength),
        ..base.clone()
    };
    let expected = |request: Request, dtype: DType, strength: Option<f64>| {
        let family = models::open(&model(), FamilyName::Auto).unwrap();
        let file = strength.map(|strength| file::read_diffusers(&adapter, strength).unwrap());
        let adapters = Adapters::new(file.into_iter().collect(), &Device::Cpu);
        let load = Load::new(dtype, &Device::Cpu).with_adapters(std::sync::Arc::new(adapters));
        let sampled = sample::sample(&*family, &load, request, &|_, _| Ok(()));
        sampled.unwrap().latents
    };
    let half = format!("{}=0.5", adapter.display());
    let growing = Request {
        dynamic_guidance: true,
        ..base.clone()
    };
    let given = Request {
        latents: Some(read(&noise)),
        ..base.clone()
    };
    let exact = DType::F32;
    let cases: [(&[&str], Tensor); 7] = [
        (&[], expected(base.clone(), exact, None)),
        (&["--dynamic-guidance"], expected(growing, exact, None)),
        (&["--latents", &noise], expected(given, exact, None)),
        (&["--video", &clip], expected(started(0.8), exact, None)),
        (
            &["--video", &clip, "--strength", "1"],
            expected(started(1.0), exact, None),
        ),
        (&["--lora", &half], expected(base.clone(), exact, Some(0.5))),
        (&["--dtype", "bf16"], expected(base.clone(), DType::BF16, None)),
    ];
    let bytes = |latents: &Tensor| -> Vec<u32> {
        let numbers = latents.to_dtype(exact).unwrap().flatten_all().unwrap().to_vec1::<f32>();
        numbers.unwrap().into_iter().map(f32::to_bits).collect()
    };
    for (i, (flags, expected)) in cases.iter().enumerate() {
        let keys = changed(None);
        sampled(
            &model(),
            &keys,
            &[*flags, &["--output", &out, "--output-latents", &file][..]].concat(),
        );
        assert!(bytes(&read(&file)) == bytes(expected), "{flags:?}");
        for (others, other) in &cases[..i] {
            assert!(bytes(other) != bytes(expected), "{flags:?} makes what {others:?} makes");
        }
    }
}
