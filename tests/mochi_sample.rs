//! Whole Mochi pipelines from a seed, against diffusers: `scripts/fixtures/make_mochi_pipelines.py` ran them with
//! `generator=torch.Generator("cpu").manual_seed(42)`, 4 steps, in f32. Of the frames every third row and column is recorded.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;
use vtrain::diffusion::guidance::Guidance;
use vtrain::diffusion::schedulers::StepList;
use vtrain::lora::adapters::Adapters;
use vtrain::lora::file;
use vtrain::models::{self, Family, FamilyName};
use vtrain::nn::Load;
use vtrain::rng::Rng;
use vtrain::sample::{Request, Start, sample};

use super::cogvideox_sample::{last, relative};
use super::fuzz::copy;
use super::mochi_vae;
use super::training::{Run, stderr};

const KEPT: usize = 3;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn expected(run: &str) -> HashMap<String, Tensor> {
    let file = fixtures().join(format!("mochi/pipelines/{run}.safetensors"));
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

/// Puts the checkpoint `mochi-1` together from its parts.
pub fn compose(name: &str, folder: &Path) {
    copy(&fixtures().join("mochi").join(name), folder);
    for part in ["tokenizer", "text_encoder"] {
        let target = folder.join(part);
        std::fs::create_dir(&target).unwrap();
        copy(&fixtures().join("ltx_video/ltx-0.9.0").join(part), &target);
    }
    mochi_vae::write(&folder.join("vae"));
}

fn checkpoint() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    compose("mochi-1", folder.path());
    folder
}

fn open(checkpoint: &TempDir) -> Box<dyn Family> {
    models::open(checkpoint.path(), FamilyName::Auto).unwrap()
}

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn request() -> Request {
    Request {
        prompt: "A red ball rolls over a green floor, cinematic lighting.".into(),
        negative_prompt: String::new(),
        num_frames: 7,
        height: 32,
        width: 48,
        steps: 4,
        step_list: None,
        scheduler: None,
        guidance: Guidance::classifier_free(4.5),
        dynamic_guidance: false,
        seed: 42,
        fps: 30.0,
        start: Start::Text,
        latents: None,
        cache: Default::default(),
    }
}

/// Compares the embedded prompts of a request with the record: the number of their own tokens, and the last one's.
fn compare_text(run: &str, family: &dyn Family, request: &Request) {
    let expected = expected(run);
    let text = family.embed(&load(), &request.prompts_with_pictures()).unwrap();
    let own = &expected["hidden"];
    let (_, count, _) = own.dims3().unwrap();
    let tokens = expected["tokens"].to_scalar::<i64>().unwrap() as usize;
    assert_eq!(text.hidden.dim(1).unwrap(), tokens, "{run}");
    assert_eq!(family.spec().text().tokens, tokens, "{run}");
    let mask = text.mask.unwrap();
    let counts: Vec<f32> = mask.sum(1).unwrap().to_vec1().unwrap();
    let theirs: Vec<f32> = expected["counts"].to_dtype(DType::F32).unwrap().to_vec1().unwrap();
    assert_eq!(counts, theirs, "{run}");
    let last = text.hidden.narrow(0, counts.len() - 1, 1).unwrap();
    let hidden = relative(&last.narrow(1, 0, count).unwrap(), own);
    assert!(hidden <= 1e-5, "{run}: the hidden states differ by {hidden}");
}

/// Runs a request on a checkpoint and compares text, timesteps, latents and frames with the record.
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
    let frames = Tensor::cat(&frames, 2).unwrap(); // (1, 3, F, H, W)
    let every = |x: &Tensor, axis: usize| {
        let kept: Vec<u32> = (0..x.dim(axis).unwrap() as u32).step_by(KEPT).collect();
        x.index_select(&Tensor::new(kept, &Device::Cpu).unwrap(), axis).unwrap()
    };
    let frames = every(&every(&frames, 3), 4).clamp(-1f32, 1f32).unwrap();
    let frames = frames.affine(127.5, 127.5).unwrap().round().unwrap();
    let theirs = expected["frames_u8"].to_dtype(DType::F32).unwrap();
    assert_eq!(frames.dims(), theirs.dims(), "{run}");
    let pixels = (frames - theirs).unwrap().abs().unwrap().mean_all().unwrap();
    let pixels = pixels.to_scalar::<f32>().unwrap();
    println!("{run}: latents {latents:.1e}, frames {pixels:.1e} of 255");
    assert!(pixels <= 0.01, "{run}: frames differ by {pixels} of 255");
}

#[test]
fn text_to_video_equals_diffusers_with_a_negative_prompt_and_without_guidance() {
    let checkpoint = checkpoint();
    let negative = Request {
        negative_prompt: "black and white film".into(),
        num_frames: 13,
        ..request()
    };
    compare("t2v", &checkpoint, negative, None);
    let unguided = Request {
        guidance: Guidance::classifier_free(1.0),
        ..request()
    };
    compare("t2v-unguided", &checkpoint, unguided, None);
    let long = Request {
        prompt: (0..130).map(|i| format!("word{i}")).collect::<Vec<_>>().join(" "),
        steps: 2,
        ..request()
    };
    let encoder = open(&checkpoint).text_encoder(&load()).unwrap();
    assert!(encoder.truncated_tokens(&long.prompt).unwrap() > 0);
    compare("t2v-long", &checkpoint, long, None);
}

/// `force_zeros_for_empty_prompt` of the pipeline's index.
#[test]
fn an_empty_prompt_has_an_end_token_or_none_as_the_checkpoint_says() {
    let checkpoint = checkpoint();
    compare("t2v-no-tokens", &checkpoint, request(), None);
    let index = |text: &str| std::fs::write(checkpoint.path().join("model_index.json"), text).unwrap();
    index(r#"{"_class_name": "MochiPipeline"}"#);
    compare("t2v-empty", &checkpoint, request(), None);
    index(r#"{"_class_name": "MochiPipeline", "force_zeros_for_empty_prompt": "yes"}"#);
    let opened = models::open(checkpoint.path(), FamilyName::Auto).map(drop);
    let error = format!("{:#}", opened.unwrap_err());
    assert!(
        error.contains("model_index.json") && error.contains("true or false, found \"yes\""),
        "{error}"
    );
}

/// Records of captions stay, and the setting is no part of the text encoder.
#[test]
fn captions_are_encoded_again_if_an_empty_prompt_is_something_else() {
    let run = Run::case("mochi", 1);
    let recorded = || {
        let mut precompute = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        precompute.args(["precompute", "--json", "--config"]).arg(run.file());
        let output = precompute.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let listing: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let sample = &listing["samples"][0];
        [sample["latents"].clone(), sample["embeds"].clone()]
    };
    let [latents, embeds] = recorded();
    assert!(embeds.is_string());
    let index = run.folder.path().join("model/model_index.json");
    std::fs::write(index, r#"{"_class_name": "MochiPipeline"}"#).unwrap();
    let [same, others] = recorded();
    assert_eq!(same, latents);
    assert_ne!(others, embeds);
}

#[test]
fn given_sigmas_take_the_place_of_the_pipelines_own() {
    let given = Request {
        step_list: Some(StepList::Sigmas(vec![1.0, 0.6, 0.3])),
        steps: 50,
        ..request()
    };
    compare("t2v-sigmas", &checkpoint(), given, None);
}

#[test]
fn a_lora_of_both_streams_does_what_it_does_in_diffusers() {
    let file = fixtures().join("mochi/pipelines/lora/pytorch_lora_weights.safetensors");
    let file = file::read_diffusers(&file, 0.7).unwrap();
    let adapters = Arc::new(Adapters::new(vec![file], &Device::Cpu));
    compare("t2v-lora", &checkpoint(), request(), Some(adapters));
}

/// diffusers has no such pipeline: the clip's latents get the noise of the first step that is left, (1 - sigma) z + sigma n.
#[test]
fn a_clip_is_changed_more_the_greater_the_strength() {
    let checkpoint = checkpoint();
    let family = open(&checkpoint);
    let mut rng = Rng::new(3);
    let clip = Tensor::from_vec(rng.randn(3 * 7 * 32 * 48), (1, 3, 7, 32, 48), &Device::Cpu).unwrap();
    let clip = clip.clamp(-1f32, 1f32).unwrap();
    let size = family.latent_size(7, 32, 48).unwrap();
    let encoder = family.video_encoder(&load()).unwrap();
    let clean = family.encode(&*encoder, &clip, &size, &mut Rng::new(42)).unwrap();
    let off = |strength: f64| {
        let change = Request {
            start: Start::Clip(clip.clone(), strength),
            steps: 20,
            ..request()
        };
        relative(
            &sample(&*family, &load(), change, &|_, _| Ok(())).unwrap().latents,
            &clean,
        )
    };
    // The last step takes a seventh of the way.
    let (little, much) = (off(0.05), off(0.9));
    assert!(little > 0.01 && 2.0 * little < much, "{little} {much}");
}

#[test]
fn what_mochi_cannot_make_is_refused_with_the_nearest_that_it_can() {
    let checkpoint = checkpoint();
    let family = open(&checkpoint);
    let error = |frames, height, width| format!("{:#}", family.latent_size(frames, height, width).unwrap_err());
    let frames = error(8, 32, 48);
    assert!(
        frames.contains("8 frames must be a multiple of 6 and one more; the nearest is 7"),
        "{frames}"
    );
    let frames = error(23, 32, 48);
    assert!(frames.contains("the nearest is 25"), "{frames}");
    let size = error(7, 40, 48);
    assert!(size.contains("40x48") && size.contains("multiples of 16"), "{size}");
    assert_eq!(family.latent_size(19, 480, 848).unwrap().shape, [1, 5, 4, 60, 106]);
    let image = Tensor::zeros((1, 3, 32, 48), DType::F32, &Device::Cpu).unwrap();
    let from_image = Request {
        start: Start::Image(image),
        ..request()
    };
    let error = sample(&*family, &load(), from_image, &|_, _| Ok(())).map(drop);
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("makes clips from text alone"), "{error}");
    let nothing = family.condition_on(&[], &family.latent_size(7, 32, 48).unwrap(), None);
    assert!(format!("{:#}", nothing.unwrap_err()).contains("Mochi 1"));
    // A schedule whose time runs the other way.
    let scheduler = checkpoint.path().join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&scheduler).unwrap();
    std::fs::write(
        &scheduler,
        text.replace(r#""invert_sigmas": true"#, r#""invert_sigmas": false"#),
    )
    .unwrap();
    let error = format!("{:#}", family.scheduler().unwrap_err());
    assert!(
        error.contains("Mochi 1 needs") && error.contains("invert_sigmas"),
        "{error}"
    );
    let config = checkpoint.path().join("transformer/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(r#""in_channels": 5"#, r#""in_channels": 4"#)).unwrap();
    let opened = models::open(checkpoint.path(), FamilyName::Auto).map(drop);
    let error = format!("{:#}", opened.unwrap_err());
    assert!(
        error.contains("in_channels is 4") && error.contains("5 latent channels"),
        "{error}"
    );
}
