//! Whole LTX-Video pipelines from a seed, against diffusers: `scripts/fixtures/make_ltx_video.py` ran them with
//! `generator=torch.Generator("cpu").manual_seed(42)`, 4 steps, guidance 3, a negative prompt and `decode_timestep=0.05`, in
//! f32 (`scripts/fixtures/ltx_video/pipelines.py`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use vtrain::diffusion::guidance::Guidance;
use vtrain::lora::adapters::Adapters;
use vtrain::lora::file;
use vtrain::models::family::{ImageCondition, ImageMode, Layout};
use vtrain::models::ltx_video::vae::Vae;
use vtrain::models::{self, Family, FamilyName};
use vtrain::nn::Load;
use vtrain::rng::Rng;
use vtrain::sample::{Request, Start, sample};
use vtrain::video::{Clip, Frames, write};

use super::cogvideox_sample::{clip, last, relative};
use super::fuzz::copy;
use super::ltx_video_vae::kept;

const PROMPT: &str = "A red ball rolls over a green floor, cinematic lighting.";
const NEGATIVE: &str = "black and white film, hand-drawn animation";
const VERSIONS: [&str; 3] = ["ltx-0.9.0", "ltx-0.9.1", "ltx-0.9.5"];
const ADAPTER: &str = "lora/pytorch_lora_weights.safetensors";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx_video")
}

fn expected(run: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join(format!("pipelines/{run}.safetensors")), &Device::Cpu).unwrap()
}

fn open(checkpoint: &str) -> Box<dyn Family> {
    models::open(&fixtures().join(checkpoint), FamilyName::LtxVideo).unwrap()
}

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn request(num_frames: usize) -> Request {
    Request {
        prompt: PROMPT.into(),
        negative_prompt: NEGATIVE.into(),
        num_frames,
        height: 64,
        width: 96,
        steps: 4,
        guidance: Guidance::classifier_free(3.0),
        step_list: None,
        scheduler: None,
        dynamic_guidance: false,
        seed: 42,
        fps: 25.0,
        start: Start::Text,
        latents: None,
        cache: Default::default(),
    }
}

/// The recorded image, (1, 3, H, W) of -1..1.
fn image() -> Tensor {
    let image = expected("i2v-ltx-0.9.0")["image"].unsqueeze(0).unwrap();
    clip(&image).squeeze(2).unwrap()
}

/// The same from the recorded image.
fn from_image(num_frames: usize) -> Request {
    Request {
        start: Start::Image(image()),
        ..request(num_frames)
    }
}

/// Runs a request on a checkpoint and compares latents and frames with the record.
fn compare(run: &str, checkpoint: &str, request: Request, adapters: Option<Arc<Adapters>>) {
    let expected = expected(run);
    let family = open(checkpoint);
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
    let frames = kept(&Tensor::cat(&frames, 2).unwrap())
        .permute((0, 2, 1, 3, 4))
        .unwrap(); // (1, F, 3, H, W)
    let frames = frames.affine(127.5, 127.5).unwrap().clamp(0f32, 255f32).unwrap();
    let theirs = expected["frames_u8"].to_dtype(DType::F32).unwrap();
    assert_eq!(frames.dims(), theirs.dims(), "{run}");
    let pixels = (frames.round().unwrap() - theirs).unwrap().abs().unwrap();
    let pixels = pixels.mean_all().unwrap().to_scalar::<f32>().unwrap();
    println!("{run}: latents {latents:.1e}, frames {pixels:.1e} of 255");
    assert!(latents <= 1e-4, "{run}: latents differ by {latents}");
    assert!(pixels <= 0.01, "{run}: frames differ by {pixels} of 255");
}

#[test]
fn text_to_video_equals_diffusers_in_all_releases() {
    for version in VERSIONS {
        compare(&format!("t2v-{version}"), version, request(17), None);
    }
}

#[test]
fn so_it_does_without_guidance_and_at_another_frame_rate() {
    let alone = Request {
        guidance: Guidance::classifier_free(1.0),
        fps: 12.0,
        ..request(9)
    };
    compare("t2v-unguided", "ltx-0.9.0", alone, None);
}

#[test]
fn image_to_video_equals_diffusers_in_all_releases() {
    for version in VERSIONS {
        compare(&format!("i2v-{version}"), version, from_image(17), None);
    }
}

#[test]
fn a_lora_that_diffusers_saved_does_what_it_does_there() {
    let adapters = || {
        let file = file::read_diffusers(&fixtures().join(ADAPTER), 0.7).unwrap();
        Some(Arc::new(Adapters::new(vec![file], &Device::Cpu)))
    };
    compare("t2v-lora", "ltx-0.9.0", request(9), adapters());
    compare("i2v-lora", "ltx-0.9.0", from_image(9), adapters());
}

#[test]
fn half_precision_stays_close() {
    // torch draws other numbers in bf16, but here latents are in f32 all along, so seeds compare.
    for request in [request(9), from_image(9)] {
        let request = Request { steps: 2, ..request };
        let run = |dtype| {
            let family = models::open(&fixtures().join("ltx-0.9.1"), FamilyName::Auto).unwrap();
            let load = || Load::new(dtype, &Device::Cpu);
            let mut sampled = sample(&*family, &load(), request.clone(), &|_, _| Ok(())).unwrap();
            assert_eq!(sampled.latents.dtype(), DType::F32);
            let mut clip = None;
            let mut keep = |frames: Tensor| {
                clip = Some(frames.to_dtype(DType::F32)?);
                Ok(())
            };
            family
                .video_decoder(&load())
                .unwrap()
                .decode(&sampled.latents, &sampled.size, &mut sampled.rng, &mut keep)
                .unwrap();
            (sampled.latents, clip.unwrap())
        };
        let ((latents, clip), (exact, exact_clip)) = (run(DType::BF16), run(DType::F32));
        let (latents, clip) = (relative(&latents, &exact), relative(&clip, &exact_clip));
        println!("latents {latents:.1e}, frames {clip:.1e}");
        assert!(latents <= 3e-2 && clip <= 1e-1, "{latents} {clip}");
    }
}

#[test]
fn padding_is_embedded_and_masked() {
    let family = open("ltx-0.9.0");
    let text = family.embed(&load(), &[(NEGATIVE, None), (PROMPT, None)]).unwrap();
    let theirs = expected("t2v-ltx-0.9.0")["mask"].to_dtype(DType::F32).unwrap();
    let values = |mask: &Tensor| mask.to_vec2::<f32>().unwrap();
    assert_eq!(values(text.mask.as_ref().unwrap()), values(&theirs));
    assert_eq!(text.hidden.dims(), [2, 128, 24]);
    let shape = family.spec().text();
    assert_eq!((shape.tokens, shape.width, shape.masked), (128, 24, true));
}

#[test]
fn the_first_step_sees_what_it_sees_in_diffusers() {
    let family = open("ltx-0.9.0");
    let expected = expected("i2v-ltx-0.9.0");
    let canvas = family.latent_size(17, 64, 96).unwrap();
    assert_eq!(
        (canvas.layout, canvas.shape, canvas.seq_len),
        (Layout::ChannelsFirst, [1, 8, 3, 2, 3], Some(18))
    );
    assert_eq!(family.spec().image_mode, ImageMode::Either);
    assert!(family.spec().image_record.tensors(&canvas).is_empty());
    let mut rng = Rng::new(42);
    let ImageCondition::First(first) = family.image_condition(&load(), &image(), &canvas, &mut rng).unwrap() else {
        panic!("the image is the first frame");
    };
    let noise = Tensor::from_vec(rng.randn(8 * 18), &canvas.shape, &Device::Cpu).unwrap();
    let latents = Tensor::cat(&[first, noise.narrow(2, 1, 2).unwrap()], 2).unwrap();
    assert!(relative(&latents, &expected["initial"]) <= 1e-5);
}

#[test]
fn a_clip_made_anew_from_its_own_latents_starts_from_their_noise() {
    let clip = image().unsqueeze(2).unwrap().repeat((1, 1, 9, 1, 1)).unwrap();
    let run = Request {
        start: Start::Clip(clip, 0.5),
        ..request(9)
    };
    let sampled = sample(&*open("ltx-0.9.5"), &load(), run, &|_, _| Ok(())).unwrap();
    assert_eq!(sampled.latents.dims(), [1, 8, 2, 2, 3]);
}

#[test]
fn sizes_that_cannot_be_made_are_refused_with_the_nearest() {
    let family = open("ltx-0.9.5");
    for ((frames, height, width), said) in [
        (
            (9, 64, 100),
            "64x100 (height x width) must be multiples of 32; the nearest is 64x96",
        ),
        ((9, 15, 0), "the nearest is 32x32"),
        (
            (16, 64, 96),
            "16 frames must be a multiple of 8 and one more; the nearest is 17",
        ),
        ((12, 64, 96), "the nearest is 9"),
        ((0, 64, 96), "at least one frame"),
    ] {
        let refused = family.latent_size(frames, height, width).unwrap_err().to_string();
        assert!(refused.contains(said), "{refused}");
    }
    assert_eq!(family.latent_size(1, 32, 32).unwrap().frames(), 1);
}

#[test]
fn parts_that_do_not_go_together_are_refused_by_their_keys() {
    let whole = fixtures().join("ltx-0.9.0");
    let refused = |file: &str, old: &str, new: &str| {
        let folder = tempfile::tempdir().unwrap();
        copy(&whole, folder.path());
        let path = folder.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{text}");
        std::fs::write(path, text.replace(old, new)).unwrap();
        let opened = models::open(folder.path(), FamilyName::Auto);
        let scheduled = opened.and_then(|family| family.scheduler().map(|_| ()));
        format!("{:#}", scheduled.unwrap_err())
    };
    let said = refused("transformer/config.json", "\"in_channels\": 8", "\"in_channels\": 9");
    assert!(said.contains("in_channels is 9"), "{said}");
    let said = refused("vae/config.json", "\"patch_size\": 4", "\"patch_size\": 2");
    assert!(said.contains("one of 8 frames and 16 pixels"), "{said}");
    let scheduler = "FlowMatchEulerDiscreteScheduler";
    let ddim = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/cogvideox/cogvideox-2b/scheduler/scheduler_config.json"),
    )
    .unwrap();
    let flow = std::fs::read_to_string(whole.join("scheduler/scheduler_config.json")).unwrap();
    assert!(flow.contains(scheduler));
    let said = refused("scheduler/scheduler_config.json", &flow, &ddim);
    assert!(
        said.contains("LTX-Video needs FlowMatchEulerDiscreteScheduler"),
        "{said}"
    );
    // A later model, whose pipelines begin with the same letters.
    let said = refused(
        "transformer/config.json",
        "LTXVideoTransformer3DModel",
        "LTX2VideoTransformer3DModel",
    );
    assert!(said.contains("LTX2VideoTransformer3DModel"), "{said}");
}

#[test]
fn clips_are_encoded_to_posteriors_of_normalised_latents() {
    let folder = fixtures().join("ltx-0.9.1");
    let vae = Vae::load(&folder.join("vae"), DType::F32, &Device::Cpu).unwrap();
    let clip = image().unsqueeze(2).unwrap().repeat((1, 1, 9, 1, 1)).unwrap();
    let theirs = vae.encode(&clip).unwrap().draw(Some(&mut Rng::new(7))).unwrap();
    let theirs = vae.statistics.normalize(&theirs).unwrap();
    let family = open("ltx-0.9.1");
    let canvas = family.latent_size(9, 64, 96).unwrap();
    let encoder = family.video_encoder(&load()).unwrap();
    let ours = family.encode(&*encoder, &clip, &canvas, &mut Rng::new(7)).unwrap();
    assert!(relative(&ours, &theirs) <= 1e-6);
    assert_eq!(ours.dims(), canvas.shape);
}

#[test]
fn the_command_starts_from_an_image_and_counts_frames_by_fps() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let data = expected("i2v-ltx-0.9.0")["image"]
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    let frames = Frames {
        data,
        num_frames: 1,
        height: 64,
        width: 96,
    };
    write(Path::new(&path("in/")), &frames, 1.0).unwrap();
    let model = fixtures().join("ltx-0.9.0").to_str().unwrap().to_string();
    let run = |more: &[&str]| {
        let latents = path("latents.safetensors");
        let common = [
            "sample",
            "--model",
            &model,
            "--prompt",
            PROMPT,
            "--negative-prompt",
            NEGATIVE,
            "--height",
            "64",
            "--width",
            "96",
            "--steps",
            "4",
            "--seed",
            "42",
            "--dtype",
            "f32",
            "--device",
            "cpu",
            "--output-latents",
            &latents,
        ];
        let output = Command::new(env!("CARGO_BIN_EXE_vtrain"))
            .args(common)
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        candle_core::safetensors::load(&latents, &Device::Cpu).unwrap()["latents"].clone()
    };
    let (image, out) = (path("in/00000.png"), path("out/"));
    let ours = run(&[
        "--image",
        &image,
        "--num-frames",
        "17",
        "--guidance-scale",
        "3",
        "--output",
        &out,
    ]);
    assert!(relative(&ours, &last(&expected("i2v-ltx-0.9.0")["latents"])) <= 1e-4);
    assert!(Path::new(&path("out/00016.png")).exists() && !Path::new(&path("out/00017.png")).exists());
    let clip = path("clip.mp4");
    let ours = run(&[
        "--num-frames",
        "9",
        "--guidance-scale",
        "1",
        "--fps",
        "12",
        "--output",
        &clip,
    ]);
    assert!(relative(&ours, &last(&expected("t2v-unguided")["latents"])) <= 1e-4);
    assert_eq!(Clip::open(Path::new(&clip)).unwrap().fps(), 12.0);
}
