//! Checks of a checkpoint's files, without their numbers.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use vtrain::lora::selection::Selection;
use vtrain::lora::{Config, TargetModules};
use vtrain::models::ltx_video::dit::Dit;
use vtrain::models::{self, FamilyName};
use vtrain::nn::Load;

use super::{Run, copy, fixtures, ltx, prompts, stderr};
use crate::disk::{again, folder_of_child};

/// The safetensors file of a part, with its tensors changed.
fn change(part: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut files = fs::read_dir(part).unwrap().map(|entry| entry.unwrap().path());
    let file = files
        .find(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
        .unwrap();
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, file).unwrap();
}

/// Cuts a part's weights into two shards with an index.
fn shard(part: &Path) {
    let mut files = fs::read_dir(part).unwrap().map(|entry| entry.unwrap().path());
    let file = files
        .find(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
        .unwrap();
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let names: Vec<String> = BTreeMap::from_iter(&tensors).into_keys().cloned().collect();
    let mut map = BTreeMap::new();
    for (n, half) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", n + 1);
        let half: HashMap<&str, Tensor> = half.iter().map(|name| (name.as_str(), tensors[name].clone())).collect();
        map.extend(half.keys().map(|tensor| (tensor.to_string(), name.clone())));
        candle_core::safetensors::save(&half, part.join(name)).unwrap();
    }
    fs::remove_file(file).unwrap();
    fs::write(
        part.join("model.safetensors.index.json"),
        json!({"weight_map": map}).to_string(),
    )
    .unwrap();
}

fn set(config: &Path, key: &str, value: Value) {
    let mut keys: Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    keys[key] = value;
    fs::write(config, keys.to_string()).unwrap();
}

#[test]
fn a_file_of_the_model_that_would_not_load_is_told_before_anything_is_encoded() {
    type Damage = fn(&Path);
    let cases: &[(&str, Damage, &str)] = &[
        (
            "ltx_video/ltx-0.9.5",
            |model| fs::remove_dir_all(model.join("transformer")).unwrap(),
            "has no transformer/",
        ),
        (
            "ltx_video/ltx-0.9.5",
            |model| {
                shard(&model.join("transformer"));
                fs::remove_file(model.join("transformer/model-00002-of-00002.safetensors")).unwrap();
            },
            "the shard model-00002-of-00002.safetensors is missing",
        ),
        (
            "wan/wan-2.1-t2v",
            |model| {
                shard(&model.join("text_encoder"));
                fs::remove_file(model.join("text_encoder/model-00001-of-00002.safetensors")).unwrap();
            },
            "the shard model-00001-of-00002.safetensors is missing",
        ),
        (
            "ltx_video/ltx-0.9.5",
            |model| change(&model.join("transformer"), |all| drop(all.remove("proj_in.weight"))),
            "the tensor proj_in.weight [28, 8] is missing; the nearest name is proj_out.weight",
        ),
        (
            "ltx_video/ltx-0.9.5",
            |model| {
                let flat = Tensor::zeros((28, 9), DType::F32, &Device::Cpu).unwrap();
                change(&model.join("transformer"), |all| {
                    drop(all.insert("proj_in.weight".into(), flat))
                });
            },
            "the tensor proj_in.weight should be [28, 8] by config.json, but is [28, 9]",
        ),
        (
            "ltx_video/ltx-0.9.5",
            |model| {
                change(&model.join("vae"), |all| {
                    let name = all
                        .keys()
                        .find(|name| name.starts_with("encoder.conv_in"))
                        .unwrap()
                        .clone();
                    all.remove(&name);
                });
            },
            "the tensor encoder.conv_in.conv.",
        ),
        (
            "wan/wan-2.1-i2v",
            |model| fs::remove_file(model.join("image_encoder/model.safetensors")).unwrap(),
            "image_encoder: no safetensors file",
        ),
        (
            "wan/wan-2.1-i2v",
            |model| fs::remove_file(model.join("image_processor/preprocessor_config.json")).unwrap(),
            "image_processor",
        ),
        (
            "cogvideox/cogvideox-5b",
            |model| fs::remove_file(model.join("tokenizer/spiece.model")).unwrap(),
            "no tokenizer.json and no spiece.model there",
        ),
        (
            "ltx_video/ltx-0.9.5",
            |model| {
                set(
                    &model.join("scheduler/scheduler_config.json"),
                    "_class_name",
                    "DDPMScheduler".into(),
                )
            },
            "scheduler_config.json",
        ),
        (
            "ltx_video/ltx-0.9.5",
            |model| {
                let path = model.join("transformer/diffusion_pytorch_model.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
            },
            "not a readable safetensors file",
        ),
        (
            "cogvideox/cogvideox-5b",
            |model| set(&model.join("transformer/config.json"), "num_layers", 3.into()),
            "the tensor transformer_blocks.2.",
        ),
    ];
    for (checkpoint, damage, said) in cases {
        let run = Run::of_copy(&fixtures(checkpoint), "");
        damage(&run.path("model"));
        let found = run.refused(4, &[]);
        assert!(found.contains(said), "{said}: {found}");
    }
}

/// The decoder is checked only if there is validation.
#[test]
fn a_decoder_that_would_not_load_stops_a_run_that_validates() {
    let run = Run::of_copy(&ltx(), "");
    change(&run.path("model/vae"), |all| {
        all.retain(|name, _| !name.starts_with("decoder.conv_out"));
    });
    let found = run.refused(4, &[&prompts(&[&[]])]);
    assert!(found.contains("the tensor decoder.conv_out.conv."), "{found}");
    let output = run.vtrain("train", &["--dry-run"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn many_tensors_that_do_not_fit_are_counted_and_the_first_are_named() {
    let folder = tempfile::tempdir().unwrap();
    copy(&ltx().join("transformer"), folder.path());
    change(folder.path(), |all| {
        all.retain(|name, _| !name.starts_with("transformer_blocks.1."))
    });
    let error = Dit::load(folder.path(), &Load::headers(DType::F32, &Device::Cpu))
        .unwrap_err()
        .to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 9, "{error}");
    assert!(
        lines[..8]
            .iter()
            .all(|line| line.contains("the tensor transformer_blocks.1.")),
        "{error}"
    );
    assert!(lines[8].starts_with("  and ") && lines[8].ends_with(" more"), "{error}");
}

/// The same layers are asked of headers as of numbers, so both hear the same of `lora:`.
#[test]
fn headers_have_the_layers_that_numbers_have() {
    for model in [
        "ltx_video/ltx-0.9.5",
        "wan/wan-2.1-i2v",
        "cogvideox/cogvideox-5b",
        "cogvideox/cogvideox-1.5-5b-i2v",
    ] {
        let layers = |load: &Load| {
            let config = Config {
                target_modules: TargetModules::Regex("all-linear".into()),
                ..Config::default()
            };
            let selection = Arc::new(Selection::new(&config, &[]).unwrap());
            let family = models::open(&fixtures(model), FamilyName::Auto).unwrap();
            family.denoiser(&load.with_adapters(selection.clone())).unwrap();
            family.text_encoder(load).unwrap();
            family.video_encoder(load).unwrap();
            family.video_decoder(load).unwrap();
            selection.finish().unwrap();
            selection.selected()
        };
        let numbers = layers(&Load::new(DType::F32, &Device::Cpu));
        assert!(numbers.len() > 10);
        assert_eq!(layers(&Load::headers(DType::F32, &Device::Cpu)), numbers, "{model}");
    }
}

/// A transformer with a matrix of 896 MiB, which is a hole in its file.
fn with_hole(folder: &Path) {
    let width: usize = 1 << 23;
    let tensors = candle_core::safetensors::load(
        ltx().join("transformer/diffusion_pytorch_model.safetensors"),
        &Device::Cpu,
    );
    let config = fs::read(ltx().join("transformer/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["caption_channels"] = width.into();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, tensor) in tensors.unwrap() {
        let mut shape = tensor.dims().to_vec();
        if name == "caption_projection.linear_1.weight" {
            shape[1] = width;
        }
        let bytes = 4 * shape.iter().product::<usize>();
        header.insert(
            name,
            json!({"dtype": "F32", "shape": shape, "data_offsets": [at, at + bytes]}),
        );
        at += bytes;
    }
    let header = Value::from(header).to_string();
    let path = folder.join("diffusion_pytorch_model.safetensors");
    fs::write(
        &path,
        [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat(),
    )
    .unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
}

#[test]
fn looking_at_a_model_takes_neither_its_memory_nor_its_time() {
    if let Some(folder) = folder_of_child() {
        Dit::load(&folder, &Load::headers(DType::F32, &Device::Cpu)).unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.map(|line| line.trim().trim_end_matches(" kB").parse::<u64>().unwrap());
        assert!(peak.is_none_or(|peak| peak < 512 << 10), "{peak:?} KiB");
    } else {
        let folder = tempfile::tempdir().unwrap();
        with_hole(folder.path());
        let test = "checks::files::looking_at_a_model_takes_neither_its_memory_nor_its_time";
        let child = again(test, folder.path(), &[]).output().unwrap();
        assert!(child.status.success(), "{}", stderr(&child));
    }
}

#[test]
fn a_part_that_is_gone_is_missed_only_where_something_is_left_to_encode_and_then_at_once() {
    let run = Run::of_copy(&ltx(), "");
    let first = run.vtrain("train", &[], &[]);
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    for part in ["vae", "text_encoder", "tokenizer"] {
        fs::remove_dir_all(run.path("model").join(part)).unwrap();
    }
    for options in [&["--dry-run"][..], &["--resume", "never"]] {
        let warm = run.vtrain("train", options, &[]);
        assert_eq!(warm.status.code(), Some(0), "{options:?}: {}", stderr(&warm));
    }
    run.add_clip("b");
    let cold = run.vtrain("train", &["--resume", "never"], &[]);
    let said = stderr(&cold);
    assert_eq!(cold.status.code(), Some(4), "{said}");
    for part in ["no vae/", "no text_encoder/", "no tokenizer/"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("loading the"), "{said}");
    // Another cache has never seen them.
    let said = stderr(&run.vtrain("train", &["--dry-run"], &["precompute.dir=other"]));
    assert!(said.contains("vae/"), "{said}");
    // And what is to be shown is decoded.
    let shows = run.vtrain("train", &["--dry-run"], &[&prompts(&[&[]])]);
    assert_eq!(shows.status.code(), Some(4), "{}", stderr(&shows));
}

#[test]
fn sampling_is_refused_for_all_reasons_at_once_before_the_text_encoder_loads() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy(&ltx(), &model);
    fs::remove_file(model.join("tokenizer/spiece.model")).unwrap();
    change(&model.join("vae"), |all| {
        all.retain(|name, _| !name.starts_with("decoder.conv_out"))
    });
    let mut sample = Command::new(env!("CARGO_BIN_EXE_vtrain"));
    sample.args([
        "sample",
        "--prompt",
        "a ball",
        "--num-frames",
        "16",
        "--height",
        "64",
        "--width",
        "96",
    ]);
    sample
        .args(["--steps", "1", "--dtype", "f32", "--device", "cpu", "--model"])
        .arg(&model);
    sample
        .arg("--lora")
        .arg(fixtures("wan/lora/pytorch_lora_weights.safetensors"));
    let output = sample.arg("-o").arg(folder.path().join("out.mp4")).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    for found in [
        "16 frames must be a multiple of 8",
        "16 of 16 adapters have no place in this model",
        "no tokenizer.json and no spiece.model there",
        "the tensor decoder.conv_out.conv.",
    ] {
        assert!(said.contains(found), "{found}: {said}");
    }
}
