//! Whole Wan pipelines from a seed, against diffusers: `scripts/fixtures/make_wan.py` ran them with
//! `generator=torch.Generator("cpu").manual_seed(42)`, 4 steps, guidance 5 and a negative prompt, in f32
//! (`scripts/fixtures/wan/{pipelines,lora}.py`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use vtrain::diffusion::guidance::Guidance;
use vtrain::lora::adapters::Adapters;
use vtrain::lora::file;
use vtrain::models::family::{ImageCondition, ImageMode, Layout};
use vtrain::models::{self, Family, FamilyName};
use vtrain::nn::Load;
use vtrain::rng::Rng;
use vtrain::sample::{Request, Start, sample};
use vtrain::video::{Frames, write};

use super::cogvideox_sample::{clip, last, relative};
use super::fuzz::copy;

/// Entities, spaces and a broken letter are repaired before tokenisation.
const PROMPT: &str = "A red ball rolls   over a green floor, salt &amp; light, cafÃ©.";
const NEGATIVE: &str = "black and white film, hand-drawn animation";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wan")
}

fn t2v() -> PathBuf {
    fixtures().join("wan-2.1-t2v")
}

fn i2v() -> PathBuf {
    fixtures().join("wan-2.1-i2v")
}

fn expected(run: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join(format!("pipelines/{run}.safetensors")), &Device::Cpu).unwrap()
}

fn open(checkpoint: &Path) -> anyhow::Result<Box<dyn Family>> {
    models::open(checkpoint, FamilyName::Auto)
}

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn request(num_frames: usize) -> Request {
    Request {
        prompt: PROMPT.into(),
        negative_prompt: NEGATIVE.into(),
        num_frames,
        height: 32,
        width: 48,
        steps: 4,
        guidance: Guidance::classifier_free(5.0),
        step_list: None,
        scheduler: None,
        dynamic_guidance: false,
        seed: 42,
        fps: 16.0,
        start: Start::Text,
        latents: None,
        cache: Default::default(),
    }
}

/// The same from the recorded image.
fn from_image(num_frames: usize) -> Request {
    let image = clip(&expected("i2v")["image"].unsqueeze(0).unwrap());
    Request {
        start: Start::Image(image.squeeze(2).unwrap()),
        ..request(num_frames)
    }
}

/// Runs a request on a checkpoint and compares latents and frames with the record.
fn compare(run: &str, checkpoint: &Path, request: Request, adapters: Option<Arc<Adapters>>) {
    let expected = expected(run);
    let family = open(checkpoint).unwrap();
    let with_adapters = Load {
        adapters: adapters.clone().map(|adapters| adapters as _),
        ..load()
    };
    let mut sampled = sample(&*family, &with_adapters, request, &|_, _| Ok(())).unwrap();
    if let Some(adapters) = adapters {
        adapters.finish().unwrap();
    }
    let latents = relative(&sampled.latents, &last(&expected["latents"]));
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
    let frames = Tensor::cat(&frames, 2).unwrap().permute((0, 2, 1, 3, 4)).unwrap(); // (1, F, 3, H, W)
    let frames = frames.affine(127.5, 127.5).unwrap().round().unwrap();
    let theirs = expected["frames_u8"].to_dtype(DType::F32).unwrap();
    assert_eq!(frames.dims(), theirs.dims(), "{run}");
    let pixels = (frames - theirs).unwrap().abs().unwrap().mean_all().unwrap();
    let pixels = pixels.to_scalar::<f32>().unwrap();
    println!("{run}: latents {latents:.1e}, frames {pixels:.1e} of 255");
    assert!(latents <= 1e-4, "{run}: latents differ by {latents}");
    assert!(pixels <= 0.01, "{run}: frames differ by {pixels} of 255");
}

#[test]
fn text_to_video_equals_diffusers_by_unipc() {
    compare("t2v", &t2v(), request(9), None);
    let alone = Request {
        guidance: Guidance::classifier_free(1.0),
        ..request(5)
    };
    compare("t2v-unguided", &t2v(), alone, None);
}

#[test]
fn text_to_video_equals_diffusers_by_euler() {
    let checkpoint = tempfile::tempdir().unwrap();
    copy(&t2v(), checkpoint.path());
    let euler = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}"#;
    std::fs::write(checkpoint.path().join("scheduler/scheduler_config.json"), euler).unwrap();
    compare("t2v-euler", checkpoint.path(), request(5), None);
}

#[test]
fn image_to_video_equals_diffusers() {
    compare("i2v", &i2v(), from_image(9), None);
}

#[test]
fn a_lora_of_text_to_video_does_in_both_what_it_does_in_diffusers() {
    let file = fixtures().join("lora/pytorch_lora_weights.safetensors");
    let adapters = || {
        let file = file::read_diffusers(&file, 0.7).unwrap();
        Some(Arc::new(Adapters::new(vec![file], &Device::Cpu)))
    };
    compare("t2v-lora", &t2v(), request(5), adapters());
    compare("i2v-lora", &i2v(), from_image(5), adapters());
}

#[test]
fn half_precision_stays_close() {
    // torch draws other numbers in bf16, but here latents are in f32 all along, so seeds compare.
    for (checkpoint, request) in [(t2v(), request(5)), (i2v(), from_image(5))] {
        let request = Request { steps: 1, ..request };
        let latents = |dtype| {
            let family = models::open(&checkpoint, FamilyName::Wan).unwrap();
            let load = || Load::new(dtype, &Device::Cpu);
            let sampled = sample(&*family, &load(), request.clone(), &|_, _| Ok(())).unwrap();
            assert_eq!(sampled.latents.dtype(), DType::F32);
            let mut count = 0;
            let mut keep = |frames: Tensor| {
                count += frames.dim(2)?;
                Ok(())
            };
            let mut rng = sampled.rng.clone();
            family
                .video_decoder(&load())
                .unwrap()
                .decode(&sampled.latents, &sampled.size, &mut rng, &mut keep)
                .unwrap();
            assert_eq!(count, 5);
            sampled.latents
        };
        let difference = relative(&latents(DType::BF16), &latents(DType::F32));
        println!("{}: {difference:.1e}", checkpoint.display());
        assert!(difference <= 5e-2, "{difference}");
    }
}

#[test]
fn an_image_says_the_same_as_in_diffusers_mask_latents_and_tokens() {
    let (family, expected) = (open(&i2v()).unwrap(), expected("i2v"));
    assert_eq!(family.spec().image_mode, ImageMode::Always);
    let canvas = family.latent_size(9, 32, 48).unwrap();
    assert_eq!((canvas.shape, canvas.layout), ([1, 4, 3, 4, 6], Layout::ChannelsFirst));
    let Start::Image(image) = from_image(9).start else {
        unreachable!("it starts from one")
    };
    let encoded = family.video_encoder(&load()).unwrap().encode_image(&image, 9).unwrap();
    let kept: Vec<Vec<usize>> = family
        .spec()
        .image_record
        .tensors(&canvas)
        .into_iter()
        .map(|(_, shape)| shape)
        .collect();
    let shapes: Vec<Vec<usize>> = encoded.iter().map(|tensor| tensor.dims()[1..].to_vec()).collect();
    assert_eq!(kept, shapes);
    // Nothing is drawn: the noise is the generator's first.
    let mut rng = Rng::new(42);
    let condition = family.condition_on(&encoded, &canvas, Some(&mut rng)).unwrap();
    let ImageCondition::Concat(beside) = condition else {
        panic!("it stands beside the noise");
    };
    let noise = Tensor::from_vec(rng.randn(4 * 3 * 4 * 6), (1, 4, 3, 4, 6), &Device::Cpu).unwrap();
    let given = Tensor::cat(&[noise, beside.latents], 1).unwrap();
    let errors = [
        relative(&given, &expected["initial"]),
        relative(&beside.tokens.unwrap(), &expected["tokens"]),
    ];
    println!("{errors:?}");
    assert!(errors.iter().all(|error| *error <= 1e-5), "{errors:?}");
}

#[test]
fn sizes_that_cannot_be_made_are_refused_with_the_nearest() {
    let family = open(&t2v()).unwrap();
    for (frames, height, width, said) in [
        (9, 40, 47, "the nearest is 48x48"),
        (9, 0, 48, "the nearest is 16x48"),
        (8, 32, 48, "the nearest is 9"),
        (7, 32, 48, "the nearest is 9"),
        (2, 32, 48, "the nearest is 1"),
        (0, 32, 48, "at least one frame"),
    ] {
        let error = family.latent_size(frames, height, width).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

/// A copy of a checkpoint with one key of one config changed: what opening it, and its scheduler, says.
fn refusal(checkpoint: &Path, file: &str, key: &str, value: serde_json::Value) -> String {
    let folder = tempfile::tempdir().unwrap();
    copy(checkpoint, folder.path());
    let path = folder.path().join(file);
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    let opened = open(folder.path()).and_then(|family| family.scheduler());
    format!("{:#}", opened.unwrap_err())
}

#[test]
fn checkpoints_of_wan_2_2_and_parts_that_do_not_go_together_are_refused_by_key() {
    let (t2v, i2v) = (t2v(), i2v());
    let second = serde_json::json!(["diffusers", "WanTransformer3DModel"]);
    for (checkpoint, file, key, value) in [
        (&t2v, "model_index.json", "transformer_2", second),
        (&i2v, "model_index.json", "boundary_ratio", 0.9.into()),
        (&t2v, "model_index.json", "expand_timesteps", true.into()),
    ] {
        let error = refusal(checkpoint, file, key, value);
        assert!(error.contains(key) && error.contains("Wan 2.2"), "{error}");
    }
    for (checkpoint, file, key, value) in [
        (&t2v, "transformer/config.json", "in_channels", 5),
        (&i2v, "transformer/config.json", "in_channels", 8),
        (&t2v, "transformer/config.json", "out_channels", 5),
        (&i2v, "transformer/config.json", "image_dim", 25),
        (&i2v, "transformer/config.json", "pos_embed_seq_len", 10),
    ] {
        let error = refusal(checkpoint, file, key, value.into());
        assert!(error.contains(key), "{error}");
    }
    let ddim = "CogVideoXDDIMScheduler".into();
    let error = refusal(&t2v, "scheduler/scheduler_config.json", "_class_name", ddim);
    assert!(error.contains("scheduler_config.json"), "{error}");
}

#[test]
fn the_command_samples_from_an_image_and_wants_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let expected = expected("i2v");
    let data = expected["image"].flatten_all().unwrap().to_vec1().unwrap();
    let frames = Frames {
        data,
        num_frames: 1,
        height: 32,
        width: 48,
    };
    write(Path::new(&path("in/")), &frames, 1.0).unwrap();
    let model = i2v().to_str().unwrap().to_string();
    let vtrain = |more: &[&str]| {
        let common = "--num-frames 9 --height 32 --width 48 --steps 4 --seed 42 --dtype f32 --device cpu";
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command
            .args(["sample", "--model", &model, "--prompt", PROMPT])
            .args(["--negative-prompt", NEGATIVE, "--guidance-scale", "5"])
            .args(common.split(' '))
            .args(more);
        command.output().unwrap()
    };
    let (image, out, latents) = (path("in/00000.png"), path("out/"), path("latents.safetensors"));
    let output = vtrain(&["--image", &image, "--output", &out, "--output-latents", &latents]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let ours = candle_core::safetensors::load(&latents, &Device::Cpu).unwrap();
    assert!(relative(&ours["latents"], &last(&expected["latents"])) <= 1e-4);
    let output = vtrain(&["--output", &out]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4));
    assert!(said.contains("starts from an image"), "{said}");
}
