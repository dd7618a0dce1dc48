//! Whole pipelines from a seed, against diffusers: `scripts/fixtures/make_cogvideox.py` ran them with
//! `generator=torch.Generator("cpu").manual_seed(42)`, 4 steps, guidance 6 and a negative prompt, in f32.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use vtrain::diffusion::guidance::Guidance;
use vtrain::lora::adapters::Adapters;
use vtrain::lora::file;
use vtrain::models::{self, FamilyName};
use vtrain::nn::Load;
use vtrain::nn::adapter::Adapt;
use vtrain::sample::{Request, Start, sample};
use vtrain::video::{Clip, Frames, write};

const PROMPT: &str = "A red ball rolls over a green floor, cinematic lighting.";
const NEGATIVE: &str = "black and white film, hand-drawn animation";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox")
}

fn expected(run: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join(format!("pipelines/{run}.safetensors")), &Device::Cpu).unwrap()
}

fn request(num_frames: usize) -> Request {
    Request {
        prompt: PROMPT.into(),
        negative_prompt: NEGATIVE.into(),
        num_frames,
        height: 32,
        width: 48,
        steps: 4,
        guidance: Guidance::classifier_free(6.0),
        step_list: None,
        scheduler: None,
        dynamic_guidance: false,
        seed: 42,
        fps: 8.0,
        start: Start::Text,
        latents: None,
        cache: Default::default(),
    }
}

/// |a - b| / |b|
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: Tensor| {
        t.to_dtype(DType::F64)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_vec0::<f64>()
            .unwrap()
            .sqrt()
    };
    norm((a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap()) / norm(b.clone())
}

/// The last of the recorded latents.
pub fn last(latents: &Tensor) -> Tensor {
    latents.get(latents.dim(0).unwrap() - 1).unwrap()
}

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

/// Runs a request on a checkpoint and compares latents and frames with the record; returns both differences.
fn compare(run: &str, checkpoint: &str, request: &Request, adapters: Option<Arc<dyn Adapt>>) -> (f64, f64) {
    let expected = expected(run);
    let family = models::open(&fixtures().join(checkpoint), FamilyName::Auto).unwrap();
    let sampled = {
        let load = Load { adapters, ..load() };
        sample(&*family, &load, request.clone(), &|_, _| Ok(())).unwrap()
    };
    let latents = relative(&sampled.latents, &last(&expected["latents"]));
    let mut frames = Vec::new();
    family
        .video_decoder(&load())
        .unwrap()
        .decode(&sampled.latents, &sampled.size, &mut sampled.rng.clone(), &mut |some| {
            frames.push(some);
            Ok(())
        })
        .unwrap();
    let frames = Tensor::cat(&frames, 2).unwrap().permute((0, 2, 1, 3, 4)).unwrap(); // (1, F, 3, H, W)
    let frames = ((frames * 127.5).unwrap() + 127.5)
        .unwrap()
        .clamp(0f32, 255f32)
        .unwrap()
        .round()
        .unwrap();
    let theirs = expected["frames_u8"].to_dtype(DType::F32).unwrap();
    assert_eq!(frames.dims(), theirs.dims(), "{run}");
    let pixels = (frames - theirs)
        .unwrap()
        .abs()
        .unwrap()
        .mean_all()
        .unwrap()
        .to_vec0::<f32>()
        .unwrap();
    println!("{run}: latents {latents:.1e}, frames {pixels:.1e} of 255");
    assert!(latents <= 1e-4, "{run}: latents differ by {latents}");
    assert!(pixels <= 1.0, "{run}: frames differ by {pixels} of 255");
    (latents, f64::from(pixels))
}

/// (F, H, W, 3) of bytes as (1, 3, F, H, W) of -1..1
pub fn clip(bytes: &Tensor) -> Tensor {
    let clip = bytes
        .to_dtype(DType::F32)
        .unwrap()
        .permute((3, 0, 1, 2))
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    ((clip * (2.0 / 255.0)).unwrap() - 1.0).unwrap()
}

#[test]
fn text_to_video_equals_diffusers() {
    compare("t2v-2b", "cogvideox-2b", &request(9), None);
    compare("t2v-5b", "cogvideox-5b", &request(5), None);
    compare("t2v-1.5", "cogvideox-1.5-5b", &request(9), None);
    let dynamic = Request {
        dynamic_guidance: true,
        ..request(5)
    };
    compare("t2v-2b-dynamic", "cogvideox-2b", &dynamic, None);
    let alone = Request {
        guidance: Guidance::classifier_free(1.0),
        ..request(1)
    };
    compare("t2v-2b-unguided", "cogvideox-2b", &alone, None);
}

#[test]
fn image_to_video_equals_diffusers() {
    for (run, checkpoint) in [("i2v-5b", "cogvideox-5b-i2v"), ("i2v-1.5", "cogvideox-1.5-5b-i2v")] {
        let image = expected(run)["image"].unsqueeze(0).unwrap();
        let start = Start::Image(clip(&image).squeeze(2).unwrap());
        compare(run, checkpoint, &Request { start, ..request(9) }, None);
    }
}

#[test]
fn video_to_video_equals_diffusers() {
    let start = Start::Clip(clip(&expected("v2v-5b")["video"]), 0.8);
    compare("v2v-5b", "cogvideox-5b", &Request { start, ..request(9) }, None);
}

fn adapters(file: &str, strength: f64) -> Arc<Adapters> {
    let file = file::read_diffusers(&fixtures().join("lora").join(file), strength).unwrap();
    Arc::new(Adapters::new(vec![file], &Device::Cpu))
}

#[test]
fn a_lora_that_diffusers_saved_does_what_it_does_there() {
    let adapt = adapters("pytorch_lora_weights.safetensors", 0.7);
    compare("t2v-5b-lora", "cogvideox-5b", &request(5), Some(adapt.clone()));
    adapt.finish().unwrap();
    // Without metadata alpha is the rank: 4 where the file's author meant 8, so twice the strength gives the same.
    compare(
        "t2v-5b-lora",
        "cogvideox-5b",
        &request(5),
        Some(adapters("without_metadata.safetensors", 1.4)),
    );
}

#[test]
fn half_precision_stays_close() {
    let expected = expected("t2v-5b");
    let family = models::open(&fixtures().join("cogvideox-5b"), FamilyName::Auto).unwrap();
    // torch draws other numbers in bf16, so the run starts from the recorded ones.
    let family_request = Request {
        steps: 1,
        guidance: Guidance::classifier_free(1.0),
        ..request(5)
    };
    let latents = Some(expected["initial_latents"].clone());
    let ours = sample(
        &*family,
        &Load::new(DType::BF16, &Device::Cpu),
        Request {
            latents: latents.clone(),
            ..family_request.clone()
        },
        &|_, _| Ok(()),
    );
    let theirs = sample(
        &*family,
        &load(),
        Request {
            latents,
            ..family_request
        },
        &|_, _| Ok(()),
    );
    let difference = relative(&ours.unwrap().latents, &theirs.unwrap().latents);
    assert!(difference <= 3e-2, "{difference}");
}

fn vtrain(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain"))
        .arg("sample")
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn the_command_writes_frames_and_latents() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let model = fixtures().join("cogvideox-5b-i2v").to_str().unwrap().to_string();
    let expected = expected("i2v-5b");
    let image = &expected["image"];
    let data = image.flatten_all().unwrap().to_vec1().unwrap();
    write(
        Path::new(&path("in/")),
        &Frames {
            data,
            num_frames: 1,
            height: 32,
            width: 48,
        },
        1.0,
    )
    .unwrap();
    let common = [
        "--model",
        &model,
        "--prompt",
        PROMPT,
        "--negative-prompt",
        NEGATIVE,
        "--num-frames",
        "9",
        "--height",
        "32",
        "--width",
        "48",
        "--steps",
        "4",
        "--seed",
        "42",
        "--dtype",
        "f32",
        "--device",
        "cpu",
    ];
    let (image, out, latents) = (path("in/00000.png"), path("out/"), path("latents.safetensors"));
    let output = vtrain(
        &[
            &common[..],
            &["--image", &image, "--output", &out, "--output-latents", &latents],
        ]
        .concat(),
    );
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let ours = candle_core::safetensors::load(&latents, &Device::Cpu).unwrap();
    assert!(relative(&ours["latents"], &last(&expected["latents"])) <= 1e-4);
    let theirs = expected["frames_u8"].squeeze(0).unwrap().permute((0, 2, 3, 1)).unwrap();
    let mut sum = 0.0;
    for n in 0..9 {
        let ours = Clip::open(Path::new(&format!("{out}{n:05}.png")))
            .unwrap()
            .decode(&[0])
            .unwrap()
            .data;
        let theirs: Vec<u8> = theirs.get(n).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        sum += ours
            .iter()
            .zip(&theirs)
            .map(|(a, b)| f64::from(a.abs_diff(*b)))
            .sum::<f64>()
            / ours.len() as f64;
    }
    assert!(sum / 9.0 <= 1.0, "{sum}");
    // A checkpoint that wants an image is not run without one.
    let output = vtrain(&[&common[..], &["--output", &path("a.mp4")]].concat());
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("starts from an image"));
    assert!(!Path::new(&path("a.mp4")).exists());
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.mp4").to_str().unwrap().to_string();
    let fails = |model: &Path, more: &[&str], code: i32, says: &str| {
        let model = model.to_str().unwrap();
        let mut args = vec!["--model", model, "--prompt", "x", "--width", "48", "--num-frames", "5"];
        args.extend(["--steps", "1", "--dtype", "f32", "--device", "cpu", "--output", &out]);
        if !more.contains(&"--height") {
            args.extend(["--height", "32"]);
        }
        args.extend(more);
        let output = vtrain(&args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says), "{said}\n does not say\n{says}");
    };
    fails(&folder.path().join("nowhere"), &[], 4, "no such directory");
    fails(folder.path(), &[], 4, "model_index.json");
    // Everything but the text encoder.
    let partial = folder.path().join("partial");
    for part in ["", "transformer", "vae", "tokenizer", "scheduler"] {
        std::fs::create_dir_all(partial.join(part)).unwrap();
        for entry in std::fs::read_dir(fixtures().join("cogvideox-2b").join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, partial.join(part).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    fails(&partial, &[], 4, "no text_encoder/");
    let model = fixtures().join("cogvideox-2b");
    fails(&model, &["--height", "33"], 4, "the nearest is 32x48");
    let lora = fixtures().join("lora/pytorch_lora_weights.safetensors");
    fails(
        &model,
        &["--lora", &format!("{}=x", lora.display())],
        2,
        "is not a number",
    );
    let not_lora = fixtures().join("dit.safetensors");
    fails(&model, &["--lora", not_lora.to_str().unwrap()], 4, "is not an adapter");
    fails(&model, &["--video", "nowhere.mp4"], 2, "nowhere.mp4: no such file");
}
