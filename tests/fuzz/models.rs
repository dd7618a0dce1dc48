//! Checkpoints of the three families, file by file, as far as a run uses each; adapter files in every format.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::prelude::{BASE64_STANDARD, Engine};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;
use vtrain::lora::file;
use vtrain::lora::format::Format;
use vtrain::lora::inspect::Report;
use vtrain::lora::resize::resize;
use vtrain::models::denoiser::TextEmbeds;
use vtrain::models::family::ImageMode;
use vtrain::models::{self, Family, FamilyName, registry};
use vtrain::nn::Load;
use vtrain::nn::vae_memory::{VaeMemory, VaeTiling};
use vtrain::protobuf_wire::{self, Message};
use vtrain::rng::Rng;
use vtrain::sample::{Prepared, Request, Start};
use vtrain::text::TextTokenizer;

use super::{Corpus, copy, files, shipped};
use crate::text::small_sentencepiece;

const FRAMES: usize = 9;
const HEIGHT: usize = 32;
const WIDTH: usize = 48;

const CHECKPOINTS: [&str; 9] = [
    "cogvideox/cogvideox-2b",
    "cogvideox/cogvideox-5b",
    "cogvideox/cogvideox-1.5-5b",
    "cogvideox/cogvideox-1.5-5b-i2v",
    "ltx_video/ltx-0.9.0",
    "ltx_video/ltx-0.9.1",
    "ltx_video/ltx-0.9.5",
    "wan/wan-2.1-t2v",
    "wan/wan-2.1-i2v",
];

/// The files of all checkpoints whose part and name are of interest.
fn checkpoints(of_interest: fn(part: &str, name: &str) -> bool) -> Corpus {
    let folder = TempDir::new().unwrap();
    for checkpoint in CHECKPOINTS {
        let name = checkpoint.split('/').next_back().unwrap();
        copy(&shipped("tests/fixtures").join(checkpoint), &folder.path().join(name));
    }
    let spoiled = files(folder.path(), |path| {
        let (part, name) = parts(path);
        of_interest(&part, &name)
    });
    let mut corpus = Corpus::new(folder, spoiled, use_part);
    corpus.or_names = |file| Some(file.parent()?.to_string_lossy().into_owned());
    corpus
}

/// `wan-2.1-t2v/vae/config.json`: `vae` and `config.json`.
fn parts(file: &Path) -> (String, String) {
    let names: Vec<String> = file.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    match names.as_slice() {
        [_, part, name] => (part.clone(), name.clone()),
        [_, name] => (String::new(), name.clone()),
        _ => panic!("{}", file.display()),
    }
}

pub fn indices() -> Corpus {
    checkpoints(|_, name| name == "model_index.json")
}

pub fn transformers() -> Corpus {
    checkpoints(|part, name| part == "transformer" && name == "config.json")
}

pub fn autoencoders() -> Corpus {
    checkpoints(|part, name| part == "vae" && name == "config.json")
}

pub fn text_encoders() -> Corpus {
    checkpoints(|part, name| part == "text_encoder" && name == "config.json")
}

pub fn image_encoders() -> Corpus {
    checkpoints(|part, name| ["image_encoder", "image_processor"].contains(&part) && name.ends_with("config.json"))
}

pub fn weights() -> Corpus {
    checkpoints(|_, name| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"))
}

/// Transformers of bitsandbytes, and those that `vtrain quantize` writes in torchao's forms.
pub fn weights_in_few_bits() -> Corpus {
    let folder = TempDir::new().unwrap();
    let (wan, kinds) = (
        shipped("tests/fixtures/wan/wan-2.1-t2v"),
        ["nf4", "int8", "torchao", "float8", "fp8"],
    );
    for kind in kinds {
        let checkpoint = folder.path().join(kind);
        let stored = shipped("tests/fixtures/storage/transformers").join(kind);
        if stored.is_dir() {
            copy(&wan, &checkpoint);
            copy(&stored, &checkpoint.join("transformer"));
            continue;
        }
        let form = match kind {
            "torchao" => "int8",
            "float8" => "fp8-scaled",
            _ => kind,
        };
        let quantize = Command::new(env!("CARGO_BIN_EXE_vtrain"))
            .args(["quantize", "-qq", "--to", form])
            .args([&wan, &checkpoint])
            .status();
        assert!(quantize.unwrap().success());
    }
    let file = |kind| PathBuf::from(kind).join("transformer/diffusion_pytorch_model.safetensors");
    let mut corpus = Corpus::new(folder, kinds.map(file).to_vec(), use_part);
    corpus.or_names = |file| Some(file.parent()?.to_string_lossy().into_owned());
    corpus
}

/// The checkpoints' own, and some with settings that none of them has.
pub fn schedulers() -> Corpus {
    let mut corpus = checkpoints(|part, _| part == "scheduler");
    let more = [
        r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 1024, "base_shift": 0.95,
            "max_image_seq_len": 4096, "max_shift": 2.05, "shift_terminal": 0.1, "use_dynamic_shifting": true,
            "num_train_timesteps": 1000, "time_shift_type": "linear", "use_karras_sigmas": true}"#,
        r#"{"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0, "use_flow_sigmas": true, "solver_order": 3,
            "prediction_type": "flow_prediction", "disable_corrector": [0], "final_sigmas_type": "sigma_min"}"#,
    ];
    for (n, text) in more.into_iter().enumerate() {
        let name = format!("more-{n}");
        copy(
            &shipped("tests/fixtures/wan/wan-2.1-t2v"),
            &corpus.folder.path().join(&name),
        );
        let file = PathBuf::from(name).join("scheduler/scheduler_config.json");
        std::fs::write(corpus.folder.path().join(&file), text).unwrap();
        corpus.files.push(file);
    }
    corpus
}

/// The checkpoints' own, and small models of SentencePiece, which are all pieces and no rules.
pub fn tokenizers() -> Corpus {
    let mut corpus = checkpoints(|part, _| part == "tokenizer");
    corpus.files.retain(|file| {
        let checkpoint = file.iter().next().unwrap();
        ["cogvideox-2b", "wan-2.1-t2v"].iter().any(|name| checkpoint == *name)
    });
    for (n, bytes) in [small_sentencepiece(false, false), small_sentencepiece(true, true)]
        .iter()
        .enumerate()
    {
        let file = PathBuf::from(format!("small-{n}/tokenizer/spiece.model"));
        let path = corpus.folder.path().join(&file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
        std::fs::write(
            corpus.folder.path().join(file.with_file_name("tokenizer_config.json")),
            r#"{"extra_ids": 0}"#,
        )
        .unwrap();
        corpus.files.push(file);
    }
    corpus.files.push(with_rules(corpus.folder.path()));
    corpus.read = Box::new(|folder, file| {
        let tokenizer = TextTokenizer::open(&folder.join(file).with_file_name(""))?;
        for text in [
            "A red ball \u{fb01}n\u{e9}  \u{ff21}cab </s> <extra_id_3> \u{1f3ac}",
            "",
            "cab  ab a",
        ] {
            tokenizer.encode(text)?;
            let encoding = tokenizer.encode_padded(text, 16)?;
            anyhow::ensure!(encoding.ids.len() == 16 && encoding.mask.len() == 16);
        }
        Ok(())
    });
    corpus
}

/// A `tokenizer.json` that normalises by the rules of a model of SentencePiece, as the published one of Wan does.
fn with_rules(folder: &Path) -> PathBuf {
    let model = std::fs::read(folder.join("cogvideox-2b/tokenizer/spiece.model")).unwrap();
    // normalizer_spec and its precompiled_charsmap, sentencepiece_model.proto
    let spec = field(&model, 0..model.len(), 3);
    let rules = BASE64_STANDARD.encode(&model[field(&model, spec, 2)]);
    let from = folder.join("wan-2.1-t2v/tokenizer");
    let mut json: Value = serde_json::from_slice(&std::fs::read(from.join("tokenizer.json")).unwrap()).unwrap();
    json["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": rules});
    let file = PathBuf::from("with-rules/tokenizer/tokenizer.json");
    let path = folder.join(&file);
    copy(&from, path.parent().unwrap());
    std::fs::write(path, json.to_string()).unwrap();
    file
}

fn field(bytes: &[u8], span: Range<usize>, number: u64) -> Range<usize> {
    let mut fields = Message::new(bytes, span).map(Result::unwrap);
    let found = fields.find_map(|field| match field.value {
        protobuf_wire::Value::Bytes(span) if field.number == number => Some(span),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no field {number}"))
}

/// Uses the part of a checkpoint that a file belongs to as a run does.
fn use_part(folder: &Path, file: &Path) -> anyhow::Result<()> {
    let checkpoint = folder.join(file.iter().next().unwrap());
    let config = models::Config {
        path: checkpoint.display().to_string(),
        ..models::Config::default()
    };
    if let Some(footprint) = config.footprint() {
        footprint.latent_bytes(FRAMES, HEIGHT, WIDTH);
        footprint.caption_bytes(4);
    }
    let family = models::open(&checkpoint, FamilyName::Auto)?;
    // A size that these settings cannot make is the request's fault, and none of the file.
    if family.latent_size(FRAMES, HEIGHT, WIDTH).is_err() {
        return Ok(());
    }
    match parts(file).0.as_str() {
        "text_encoder" | "tokenizer" => drop(family.embed(&load(), &[("a red ball", None)])?),
        "transformer" => denoise(&*family)?,
        "vae" => code(&*family)?,
        "image_encoder" | "image_processor" => {
            let image = Tensor::zeros((1, 3, HEIGHT, WIDTH), DType::F32, &Device::Cpu)?;
            family.video_encoder(&load())?.encode_image(&image, FRAMES)?;
        }
        "scheduler" => {
            let scheduler = family.scheduler()?;
            for (steps, strength) in [(5, 1.0), (7, 0.8)] {
                // Steps that these settings do not allow are the request's fault.
                let Ok(mut run) = scheduler.start(steps, Some(1234)).and_then(|run| run.skip_by(strength)) else {
                    continue;
                };
                let mut sample = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
                while run.timestep().is_some() {
                    let noise = match run.noise_draws()? {
                        0 => None,
                        _ => Some(sample.ones_like()?),
                    };
                    sample = run.step(&sample.ones_like()?, &sample, noise.as_ref())?.sample;
                }
            }
        }
        _ => drop(family.scheduler()?),
    }
    Ok(())
}

fn request(family: &dyn Family) -> anyhow::Result<Request> {
    Ok(Request {
        prompt: String::new(),
        negative_prompt: String::new(),
        num_frames: FRAMES,
        height: HEIGHT,
        width: WIDTH,
        steps: 1,
        guidance: vtrain::diffusion::guidance::Guidance::classifier_free(1.0),
        step_list: None,
        scheduler: None,
        dynamic_guidance: false,
        seed: 0,
        fps: family.spec().family.frame_rate,
        start: match family.spec().image_mode {
            ImageMode::Always => Start::Image(Tensor::zeros((1, 3, HEIGHT, WIDTH), DType::F32, &Device::Cpu)?),
            _ => Start::Text,
        },
        latents: None,
        cache: Default::default(),
    })
}

const TILES: VaeMemory = VaeMemory {
    tiling: VaeTiling::Always(true),
    slicing: true,
    free: None,
};

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

/// One step of sampling, on an empty text.
fn denoise(family: &dyn Family) -> anyhow::Result<()> {
    let denoiser = family.denoiser(&load())?;
    let shape = family.spec().text();
    let text = TextEmbeds {
        hidden: Tensor::zeros((1, shape.tokens, shape.width), DType::F32, &Device::Cpu)?,
        mask: match shape.masked {
            true => Some(Tensor::ones((1, shape.tokens), DType::F32, &Device::Cpu)?),
            false => None,
        },
        pooled: None,
    };
    let prepared = Prepared::new(family, &load(), request(family)?, text)?;
    match prepared.denoise(&*denoiser, &|_, _| Ok(())) {
        // A model of fewer positions than this request has.
        Err(error) if error.to_string().contains("that this model has positions for") => Ok(()),
        denoised => denoised.map(drop),
    }
}

/// A clip to latents, and latents to a clip.
fn code(family: &dyn Family) -> anyhow::Result<()> {
    let clip = Tensor::zeros((1, 3, FRAMES, HEIGHT, WIDTH), DType::F32, &Device::Cpu)?;
    let posterior = family.video_encoder(&load().with_vae(TILES))?.encode(&clip)?;
    family.latents(&posterior.mode())?;
    let canvas = family.latent_size(FRAMES, HEIGHT, WIDTH)?;
    let latents = Tensor::zeros(&canvas.shape, DType::F32, &Device::Cpu)?;
    family
        .video_decoder(&load())?
        .decode(&latents, &canvas, &mut Rng::new(0), &mut |_| Ok(()))
}

/// Adapter files in the formats of diffusers, PEFT, ComfyUI, kohya and musubi-tuner.
pub fn adapters() -> Corpus {
    let folder = TempDir::new().unwrap();
    copy(&shipped("tests/fixtures/lora/formats"), folder.path());
    let spoiled = files(folder.path(), |path| !path.to_string_lossy().contains("expected"));
    Corpus::new(folder, spoiled, |folder, file| {
        let path = match file.ends_with("adapter_config.json") {
            true => folder.join(file).with_file_name("adapter_model.safetensors"),
            false => folder.join(file),
        };
        let read = file::read(&path, &registry::names())?;
        // What can be read can be looked at, written and shrunk, or that is refused; the commands name the file.
        let worked = || -> anyhow::Result<()> {
            Report::of(&read, |_, _| None)?;
            for format in [Format::Diffusers, Format::ComfyUi, Format::Kohya] {
                file::from_bytes(&read.write(format)?, None, &registry::names())?.check()?;
            }
            resize(&read.layers, 1)?;
            Ok(())
        };
        let _ = worked();
        read.apply(&path, 1.0).map(drop)
    })
}
