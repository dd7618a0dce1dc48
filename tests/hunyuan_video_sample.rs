//! Whole HunyuanVideo pipelines from a seed, against diffusers: `scripts/fixtures/make_hunyuan_pipelines.py` ran them with
//! `generator=torch.Generator("cpu").manual_seed(42)`, 3 steps, in f32, without tiles. For an image it gave the pipeline its
//! own template with the place and the number of patches that the tiny tokenizer and picture have.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;
use vtrain::diffusion::guidance::{Guidance, GuidanceMode};
use vtrain::diffusion::schedulers::StepList;
use vtrain::lora::adapters::Adapters;
use vtrain::lora::file;
use vtrain::models::{self, Family, FamilyName};
use vtrain::nn::Load;
use vtrain::sample::{Request, Start, sample};

use super::cogvideox_sample::{clip, last, relative};
use super::fuzz::copy;

const PROMPT: &str = "A red ball rolls over a green floor";
const NEGATIVE: &str = "black and white film";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hunyuan_video")
}

fn expected(run: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join(format!("pipelines/{run}.safetensors")), &Device::Cpu).unwrap()
}

fn checkpoint(kind: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    compose(kind, folder.path());
    folder
}

/// Puts a checkpoint of this kind together from its parts.
pub fn compose(kind: &str, folder: &Path) {
    let parts = fixtures().join("checkpoints");
    copy(&parts.join("t2v"), folder);
    if kind == "t2v" {
        return;
    }
    for part in ["tokenizer", "text_encoder", "transformer"] {
        std::fs::remove_dir_all(folder.join(part)).unwrap();
    }
    for source in ["i2v", kind] {
        copy(&parts.join(source), folder);
    }
    let index = r#"{"_class_name": "HunyuanVideoImageToVideoPipeline"}"#;
    std::fs::write(folder.join("model_index.json"), index).unwrap();
}

fn open(checkpoint: &TempDir) -> Box<dyn Family> {
    models::open(checkpoint.path(), FamilyName::Auto).unwrap()
}

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn guidance(mode: GuidanceMode, scale: f64, true_cfg_scale: f64) -> Guidance {
    Guidance::of(mode, scale, true_cfg_scale)
}

fn request(num_frames: usize) -> Request {
    Request {
        prompt: PROMPT.into(),
        negative_prompt: NEGATIVE.into(),
        num_frames,
        height: 32,
        width: 48,
        steps: 3,
        step_list: None,
        scheduler: None,
        guidance: guidance(GuidanceMode::Embedded, 6.0, 1.0),
        dynamic_guidance: false,
        seed: 42,
        fps: 24.0,
        start: Start::Text,
        latents: None,
        cache: Default::default(),
    }
}

/// So many words that the template's end does not fit.
fn long() -> String {
    (0..130).map(|i| format!("word{i}")).collect::<Vec<_>>().join(" ")
}

/// The same from the recorded image.
fn from_image(num_frames: usize, guidance: Guidance) -> Request {
    let image = clip(&expected("image")["image"].unsqueeze(0).unwrap());
    Request {
        start: Start::Image(image.squeeze(2).unwrap()),
        guidance,
        ..request(num_frames)
    }
}

/// Compares the embedded prompt of a request with the record: its own tokens, and the vector.
fn compare_text(run: &str, family: &dyn Family, request: &Request) {
    let expected = expected(run);
    let prompts = request.prompts_with_pictures();
    let text = family.embed(&load(), &prompts[prompts.len() - 1..]).unwrap();
    let own = &expected["hidden"];
    let (_, count, _) = own.dims3().unwrap();
    let tokens = expected["tokens"].to_scalar::<i64>().unwrap() as usize;
    assert_eq!(text.hidden.dim(1).unwrap(), tokens, "{run}");
    assert_eq!(family.spec().text().tokens, tokens, "{run}");
    let mask: Vec<f32> = text.mask.unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let ours = mask.iter().filter(|own| **own == 1.0).count();
    assert_eq!(ours, count, "{run}");
    assert!(mask[..count].iter().all(|own| *own == 1.0), "{run}");
    let hidden = relative(&text.hidden.narrow(1, 0, count).unwrap(), own);
    let pooled = relative(&text.pooled.unwrap(), &expected["pooled"]);
    assert!(hidden <= 1e-5, "{run}: the hidden states differ by {hidden}");
    assert!(pooled <= 1e-5, "{run}: the vector differs by {pooled}");
}

/// Runs a request on a checkpoint and compares text, latents and frames with the record.
fn compare(run: &str, checkpoint: &TempDir, request: Request, adapters: Option<Arc<Adapters>>) {
    let expected = expected(run);
    let family = open(checkpoint);
    compare_text(run, &*family, &request);
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
    let frames = frames
        .clamp(-1f32, 1f32)
        .unwrap()
        .affine(127.5, 127.5)
        .unwrap()
        .round()
        .unwrap();
    let theirs = expected["frames_u8"].to_dtype(DType::F32).unwrap();
    assert_eq!(frames.dims(), theirs.dims(), "{run}");
    let pixels = (frames - theirs).unwrap().abs().unwrap().mean_all().unwrap();
    let pixels = pixels.to_scalar::<f32>().unwrap();
    println!("{run}: latents {latents:.1e}, frames {pixels:.1e} of 255");
    assert!(pixels <= 0.01, "{run}: frames differ by {pixels} of 255");
}

#[test]
fn text_to_video_equals_diffusers_at_a_guidance_scale() {
    compare("t2v", &checkpoint("t2v"), request(9), None);
}

#[test]
fn a_negative_prompt_guides_by_the_true_scale() {
    let true_cfg = Request {
        guidance: guidance(GuidanceMode::Embedded, 1.0, 3.0),
        ..request(5)
    };
    compare("t2v-true-cfg", &checkpoint("t2v"), true_cfg, None);
}

#[test]
fn a_prompt_that_is_too_long_loses_its_end_like_in_diffusers() {
    let long = Request {
        prompt: long(),
        ..request(5)
    };
    let checkpoint = checkpoint("t2v");
    let encoder = open(&checkpoint).text_encoder(&load()).unwrap();
    assert!(encoder.truncated_tokens(&long.prompt).unwrap() > 0);
    assert_eq!(encoder.truncated_tokens(PROMPT).unwrap(), 0);
    compare("t2v-long", &checkpoint, long, None);
}

#[test]
fn given_sigmas_space_the_steps_of_a_distilled_model() {
    let given = Request {
        step_list: Some(StepList::Sigmas(vec![1.0, 0.6, 0.3])),
        steps: 50,
        ..request(5)
    };
    compare("t2v-sigmas", &checkpoint("t2v"), given, None);
}

#[test]
fn a_lora_of_both_kinds_of_blocks_does_what_it_does_in_diffusers() {
    let file = fixtures().join("pipelines/lora/pytorch_lora_weights.safetensors");
    let adapters = || {
        let file = file::read_diffusers(&file, 0.7).unwrap();
        Some(Arc::new(Adapters::new(vec![file], &Device::Cpu)))
    };
    compare("t2v-lora", &checkpoint("t2v"), request(5), adapters());
    let concat = from_image(5, guidance(GuidanceMode::BuiltIn, 1.0, 1.0));
    compare("i2v-concat-lora", &checkpoint("i2v-concat"), concat, adapters());
    let replace = from_image(5, guidance(GuidanceMode::Embedded, 6.0, 1.0));
    compare("i2v-replace-lora", &checkpoint("i2v-replace"), replace, adapters());
}

/// FramePack, HunyuanVideo 1.5 and SkyReels are relatives with other networks or other inputs.
#[test]
fn relatives_that_are_not_supported_are_refused_by_name() {
    let refused = |pipeline: &str, key: &str, value: serde_json::Value| {
        let checkpoint = checkpoint("t2v");
        let index = format!(r#"{{"_class_name": "{pipeline}"}}"#);
        std::fs::write(checkpoint.path().join("model_index.json"), index).unwrap();
        let path = checkpoint.path().join("transformer/config.json");
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let opened = models::open(checkpoint.path(), FamilyName::Auto);
        format!("{:#}", opened.map(drop).unwrap_err())
    };
    for (pipeline, class) in [
        (
            "HunyuanVideoFramepackPipeline",
            "HunyuanVideoFramepackTransformer3DModel",
        ),
        ("HunyuanVideo15Pipeline", "HunyuanVideo15Transformer3DModel"),
    ] {
        let error = refused(pipeline, "_class_name", class.into());
        assert!(
            error.contains(class) && error.contains("transformer/config.json"),
            "{error}"
        );
    }
    let error = refused("HunyuanVideoPipeline", "in_channels", 10.into());
    assert!(
        error.contains("in_channels is 10") && error.contains("SkyReels"),
        "{error}"
    );
}

#[test]
fn image_to_video_with_an_image_in_channels_equals_diffusers() {
    let concat = checkpoint("i2v-concat");
    let built_in = |true_cfg| guidance(GuidanceMode::BuiltIn, 6.0, true_cfg);
    compare("i2v-concat", &concat, from_image(9, built_in(1.0)), None);
    compare("i2v-concat-true-cfg", &concat, from_image(9, built_in(2.5)), None);
    let long = Request {
        prompt: long(),
        ..from_image(5, built_in(1.0))
    };
    compare("i2v-concat-long", &concat, long, None);
}

#[test]
fn image_to_video_with_an_image_as_the_first_frame_equals_diffusers() {
    let embedded = guidance(GuidanceMode::Embedded, 6.0, 1.0);
    compare("i2v-replace", &checkpoint("i2v-replace"), from_image(9, embedded), None);
}
