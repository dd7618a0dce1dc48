//! Whole Allegro pipelines from a seed, against diffusers: `scripts/fixtures/make_allegro.py` ran them with
//! `generator=torch.Generator("cpu").manual_seed(42)`, 4 steps, guidance 3 and a negative prompt, in f32, the clip being one
//! tile of the autoencoder (`scripts/fixtures/allegro/pipelines.py`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;
use vtrain::diffusion::guidance::Guidance;
use vtrain::lora::adapters::Adapters;
use vtrain::lora::file;
use vtrain::models::family::{ImageMode, Layout};
use vtrain::models::{self, Family, FamilyName};
use vtrain::nn::Load;
use vtrain::rng::Rng;
use vtrain::sample::{Request, Sampled, Start, refused, sample};

use super::cogvideox_sample::{last, relative};
use super::fuzz::copy;

const NAME: &str = "allegro-t2v";
const PROMPT: &str = "  A red ball rolls over a green floor, cinematic lighting.";
const NEGATIVE: &str = "Black and white film";

/// Of the rows and columns of frames, every so manieth is recorded.
const KEPT: u32 = 5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn expected(run: &str) -> HashMap<String, Tensor> {
    let path = fixtures().join(format!("allegro/pipelines/{run}.safetensors"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// Puts the checkpoint together from its parts: its text encoder is that of the CogVideoX fixtures.
pub fn compose(kind: &str, folder: &Path) {
    copy(&fixtures().join("allegro").join(kind), folder);
    for part in ["text_encoder", "tokenizer"] {
        copy(
            &fixtures().join("cogvideox/cogvideox-2b").join(part),
            &folder.join(part),
        );
    }
}

fn checkpoint() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    compose(NAME, folder.path());
    folder
}

fn open(checkpoint: &TempDir) -> Box<dyn Family> {
    models::open(checkpoint.path(), FamilyName::Auto).unwrap()
}

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn request(num_frames: usize, guidance: f64) -> Request {
    Request {
        prompt: PROMPT.into(),
        negative_prompt: NEGATIVE.into(),
        num_frames,
        height: 32,
        width: 48,
        steps: 4,
        guidance: Guidance::classifier_free(guidance),
        step_list: None,
        scheduler: None,
        dynamic_guidance: false,
        seed: 42,
        fps: 15.0,
        start: Start::Text,
        latents: None,
        cache: Default::default(),
    }
}

/// Frames (1, F, 3, H, W) of 0..255, of every few rows and columns.
fn frames(family: &dyn Family, sampled: &mut Sampled) -> Tensor {
    let mut frames = Vec::new();
    let mut keep = |some| {
        frames.push(some);
        Ok(())
    };
    family
        .video_decoder(&load())
        .unwrap()
        .decode(&sampled.latents, &sampled.size, &mut sampled.rng, &mut keep)
        .unwrap();
    let mut all = Tensor::cat(&frames, 2).unwrap().transpose(1, 2).unwrap();
    for axis in [3, 4] {
        let places = Tensor::arange_step(0, all.dim(axis).unwrap() as u32, KEPT, &Device::Cpu).unwrap();
        all = all.contiguous().unwrap().index_select(&places, axis).unwrap();
    }
    let bytes = all.clamp(-1f32, 1f32).unwrap().affine(127.5, 127.5).unwrap();
    bytes.round().unwrap()
}

/// Runs a request and compares latents, frames and what is drawn behind it with the record.
fn compare(run: &str, checkpoint: &TempDir, request: Request, adapters: Option<Arc<Adapters>>) {
    let (expected, family) = (expected(run), open(checkpoint));
    let with_adapters = Load {
        adapters: adapters.clone().map(|adapters| adapters as _),
        ..load()
    };
    let mut sampled = sample(&*family, &with_adapters, request, &|_, _| Ok(())).unwrap();
    if let Some(adapters) = adapters {
        adapters.finish().unwrap();
    }
    let latents = relative(&sampled.latents, &last(&expected["latents"]));
    assert!(latents <= 1e-4, "{run}: latents differ by {latents}");
    let next: Vec<f32> = expected["next"].to_vec1().unwrap();
    assert_eq!(sampled.rng.clone().randn(16), next, "{run}: draws");
    let frames = frames(&*family, &mut sampled);
    let theirs = expected["frames_u8"].to_dtype(DType::F32).unwrap();
    assert_eq!(frames.dims(), theirs.dims(), "{run}");
    let pixels = (frames - theirs).unwrap().abs().unwrap().mean_all().unwrap();
    let pixels = pixels.to_scalar::<f32>().unwrap();
    println!("{run}: latents {latents:.1e}, frames {pixels:.1e} of 255");
    assert!(pixels <= 0.01, "{run}: frames differ by {pixels} of 255");
}

/// With guidance and without; under an adapter, which PEFT merged, and once more without that.
#[test]
fn text_to_video_equals_diffusers_down_to_what_its_steps_draw() {
    let checkpoint = checkpoint();
    compare("t2v", &checkpoint, request(8, 3.0), None);
    compare("t2v-unguided", &checkpoint, request(12, 1.0), None);
    let file = fixtures().join("allegro/lora/pytorch_lora_weights.safetensors");
    let file = file::read_diffusers(&file, 0.7).unwrap();
    let adapters = Arc::new(Adapters::new(vec![file], &Device::Cpu));
    compare("t2v-lora", &checkpoint, request(8, 3.0), Some(adapters));
}

/// diffusers has no such pipeline; the record is of its parts.
#[test]
fn video_to_video_starts_from_the_clip_and_the_noise_of_a_later_step() {
    let numbers = Rng::new(5).randn(3 * 8 * 32 * 48);
    let clip = Tensor::from_vec(numbers, (1, 3, 8, 32, 48), &Device::Cpu).unwrap();
    let from_clip = Request {
        start: Start::Clip(clip.clamp(-1f32, 1f32).unwrap(), 0.5),
        ..request(8, 1.0)
    };
    let sampled = sample(&*open(&checkpoint()), &load(), from_clip, &|_, _| Ok(())).unwrap();
    let error = relative(&sampled.latents, &expected("v2v")["latents"]);
    assert!(error <= 1e-4, "{error:e}");
}

#[test]
fn prompts_are_lower_case_and_masked_in_both_networks() {
    let (checkpoint, expected) = (checkpoint(), expected("t2v"));
    let family = open(&checkpoint);
    let text = family.embed(&load(), &[(NEGATIVE, None), (PROMPT, None)]).unwrap();
    assert_eq!(text.hidden.dims(), [2, 512, 24]);
    let mask = text.mask.unwrap();
    let tokens = mask.sum(1).unwrap().to_dtype(DType::I64).unwrap();
    assert_eq!(
        tokens.to_vec1::<i64>().unwrap(),
        expected["tokens"].to_vec1::<i64>().unwrap()
    );
    let own = expected["text"].dim(0).unwrap();
    let ours = text.hidden.get(1).unwrap().narrow(0, 0, own).unwrap();
    let error = relative(&ours, &expected["text"]);
    assert!(error <= 1e-5, "{error:e}");
}

#[test]
fn half_precision_stays_close() {
    let checkpoint = checkpoint();
    let noise = Tensor::from_vec(Rng::new(1).randn(4 * 2 * 4 * 6), (1, 4, 2, 4, 6), &Device::Cpu).unwrap();
    let run = |dtype| {
        let request = Request {
            steps: 1,
            latents: Some(noise.clone()),
            ..request(8, 3.0)
        };
        let sampled = sample(
            &*open(&checkpoint),
            &Load::new(dtype, &Device::Cpu),
            request,
            &|_, _| Ok(()),
        );
        sampled.unwrap().latents
    };
    let latents = run(DType::BF16);
    assert_eq!(latents.dtype(), DType::BF16, "as in the pipeline");
    let error = relative(&latents, &run(DType::F32));
    assert!(error <= 3e-2, "{error:e}");
}

#[test]
fn sizes_images_and_relatives_that_it_cannot_take_are_refused_by_name() {
    let checkpoint = checkpoint();
    let family = open(&checkpoint);
    let size = family.latent_size(88, 720, 1280).unwrap();
    assert_eq!((size.shape, size.layout), ([1, 4, 22, 90, 160], Layout::ChannelsFirst));
    for ((frames, height, width), said) in [
        ((9, 32, 48), "9 frames must be a multiple of 4; the nearest is 8"),
        ((0, 32, 48), "the nearest is 4"),
        (
            (8, 40, 48),
            "40x48 (height x width) must be multiples of 16; the nearest is 48x48",
        ),
    ] {
        let error = format!("{:#}", family.latent_size(frames, height, width).unwrap_err());
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(family.spec().image_mode, ImageMode::Never);
    let image = Tensor::zeros((1, 3, 32, 48), DType::F32, &Device::Cpu).unwrap();
    let from_image = Request {
        start: Start::Image(image),
        ..request(8, 3.0)
    };
    let why: Vec<String> = refused(&*family, &from_image)
        .into_iter()
        .map(|part| part.why)
        .collect();
    assert_eq!(
        why,
        ["this checkpoint makes clips from text alone; leave out the image"]
    );

    let changed = |part: &str, key: &str, value: serde_json::Value| {
        let path = checkpoint.path().join(part);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let opened = models::open(checkpoint.path(), FamilyName::Auto);
        let error = format!("{:#}", opened.and_then(|family| family.scheduler()).unwrap_err());
        std::fs::write(&path, text).unwrap();
        error
    };
    let transformer = "transformer/config.json";
    let error = changed(transformer, "_class_name", "AllegroTransformerTI2V3DModel".into());
    assert!(
        error.contains("AllegroTransformerTI2V3DModel") && error.contains(transformer),
        "{error}"
    );
    let error = changed(transformer, "in_channels", 9.into());
    assert!(
        error.contains("in_channels is 9") && error.contains("Allegro-TI2V"),
        "{error}"
    );
    let error = changed(
        "scheduler/scheduler_config.json",
        "_class_name",
        "CogVideoXDDIMScheduler".into(),
    );
    assert!(
        error.contains("Allegro needs EulerAncestralDiscreteScheduler"),
        "{error}"
    );
}
