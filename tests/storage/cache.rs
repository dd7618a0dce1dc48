//! What was stored in few bits while a checkpoint loaded, kept for the next start.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use vtrain::config::RunConfig;
use vtrain::lora::trainable::Trainable;
use vtrain::lora::{self, Init, TargetModules};
use vtrain::models::denoiser::Denoiser;
use vtrain::models::wan::dit::Dit;
use vtrain::models::{Offload, registry};
use vtrain::nn::Load;
use vtrain::nn::load::PartQuantization;
use vtrain::nn::residency::ResidentShare;
use vtrain::nn::storage::quantize::Quantization;
use vtrain::rng::Rng;

use super::models::{answers, input, relative};
use super::{bytes, fixture};

/// A copy of the dense transformer, and an empty folder for the cache.
fn dense(to: &Path) -> (PathBuf, PathBuf) {
    let (model, cache) = (to.join("transformer"), to.join("cache"));
    fs::create_dir(&model).unwrap();
    crate::fuzz::copy(&fixture("../wan/wan-2.1-t2v/transformer"), &model);
    (model, cache)
}

fn load(form: &str, dtype: DType) -> Load {
    Load::new(dtype, &Device::Cpu).with_quantization(PartQuantization {
        transformer: Quantization::from_name(form),
        text_encoder: None,
    })
}

fn predicted(model: &Path, load: &Load) -> Vec<u8> {
    let input = vtrain::models::denoiser::Input {
        latents: input(&answers()).latents.to_dtype(load.dtype).unwrap(),
        ..input(&answers())
    };
    bytes(&Dit::load(model, load).unwrap().forward(&input).unwrap())
}

/// Files of the cache by folder and name, with their content.
fn entries(cache: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in fs::read_dir(cache).into_iter().flatten() {
        let folder = folder.unwrap().path();
        for file in fs::read_dir(&folder).into_iter().flatten() {
            let file = file.unwrap().path();
            let name = file.strip_prefix(cache).unwrap().to_str().unwrap().to_string();
            files.insert(name, fs::read(&file).unwrap());
        }
    }
    files
}

/// Changes one weight of the checkpoint.
fn change(model: &Path) {
    let path = model.join("diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let weight = tensors.get_mut("blocks.0.attn1.to_q.weight").unwrap();
    *weight = (&*weight * 3.0).unwrap();
    candle_core::safetensors::save(&tensors, &path).unwrap();
}

#[test]
fn the_second_start_predicts_the_same_bits_from_the_cache_in_every_form() {
    for form in Quantization::all() {
        let folder = tempfile::tempdir().unwrap();
        let (model, cache) = dense(folder.path());
        let plain = load(form.name(), DType::F32);
        let cached = plain.with_quantized_cache(Some(&cache));
        let expected = predicted(&model, &plain);
        assert!(entries(&cache).is_empty());
        assert!(
            predicted(&model, &cached) == expected,
            "{}: the first start",
            form.name()
        );
        let kept = entries(&cache);
        assert!(kept.len() >= 20, "{}: {} matrices", form.name(), kept.len());
        assert!(
            predicted(&model, &cached) == expected,
            "{}: the second start",
            form.name()
        );
        assert!(entries(&cache) == kept, "{}", form.name());

        // Another matrix in its place, whole, is what the next start computes with: it was read.
        change(&model);
        assert!(
            predicted(&model, &cached) != expected,
            "{}: another checkpoint",
            form.name()
        );
        let both = entries(&cache);
        let other: Vec<_> = both.keys().filter(|name| !kept.contains_key(*name)).collect();
        assert_eq!(other.len(), kept.len(), "{}: a checkpoint has its own", form.name());
        for name in other {
            let same = kept
                .keys()
                .find(|own| own.rsplit('/').next() == name.rsplit('/').next());
            fs::write(cache.join(name), &kept[same.unwrap()]).unwrap();
        }
        assert!(
            predicted(&model, &cached) == expected,
            "{}: what is in the cache",
            form.name()
        );
    }
}

#[test]
fn blocks_are_streamed_from_the_cache() {
    for form in ["nf4", "q8_0", "int8"] {
        let folder = tempfile::tempdir().unwrap();
        let (model, cache) = dense(folder.path());
        let plain = load(form, DType::F32);
        let streamed = plain.with_quantized_cache(Some(&cache));
        let streamed = streamed.with_residency(Offload::Group.residency(ResidentShare::Share(0.0)));
        let expected = predicted(&model, &plain);
        for start in ["first", "second"] {
            assert!(predicted(&model, &streamed) == expected, "{form}: the {start} start");
        }
    }
}

#[test]
fn matrices_of_another_type_are_others() {
    let folder = tempfile::tempdir().unwrap();
    let (model, cache) = dense(folder.path());
    predicted(&model, &load("int8", DType::F32).with_quantized_cache(Some(&cache)));
    let kept = entries(&cache).len();
    let bf16 = load("int8", DType::BF16);
    let expected = predicted(&model, &bf16);
    assert!(predicted(&model, &bf16.with_quantized_cache(Some(&cache))) == expected);
    assert_eq!(entries(&cache).len(), 2 * kept);
}

#[test]
fn a_damaged_file_is_written_anew_and_a_foreign_one_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (model, cache) = dense(folder.path());
    for form in ["nf4", "q8_0", "fp8-scaled"] {
        let _ = fs::remove_dir_all(&cache);
        let load = load(form, DType::F32).with_quantized_cache(Some(&cache));
        let expected = predicted(&model, &load);
        let whole = entries(&cache);
        let file = |path: &str| {
            let ending = format!("/{path}.safetensors");
            let name = whole.keys().find(|name| name.ends_with(&ending));
            cache.join(name.unwrap())
        };
        let path = file("blocks.0.attn1.to_q.weight");
        let content = fs::read(&path).unwrap();
        let mut flipped = content.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let other = fs::read(file("blocks.0.attn1.to_k.weight")).unwrap();
        for damaged in [flipped, content[..content.len() / 2].to_vec(), Vec::new(), other] {
            fs::write(&path, damaged).unwrap();
            assert!(predicted(&model, &load) == expected, "{form}");
            assert!(entries(&cache) == whole, "{form}");
        }
    }
}

#[test]
fn a_cache_that_cannot_be_written_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (model, cache) = dense(folder.path());
    fs::write(&cache, "a file in its place").unwrap();
    let plain = load("nf4", DType::F32);
    assert!(predicted(&model, &plain.with_quantized_cache(Some(&cache))) == predicted(&model, &plain));
    assert_eq!(fs::read(&cache).unwrap(), b"a file in its place");
}

#[test]
fn adapters_that_start_at_what_is_lost_see_the_dense_matrices_whatever_is_cached() {
    let folder = tempfile::tempdir().unwrap();
    let (model, cache) = dense(folder.path());
    let config = lora::Config {
        rank: 4,
        target_modules: TargetModules::Regex("all-linear".into()),
        init: Some(Init::Residual),
        ..lora::Config::default()
    };
    let started = |load: &Load| {
        let trainable = Trainable::new(&config, &registry::names(), Rng::new(3), &Device::Cpu).unwrap();
        let trainable = Arc::new(trainable);
        Dit::load(&model, &load.with_adapters(trainable.clone())).unwrap();
        let pairs = trainable.finish().unwrap();
        let b = |b: &Tensor| bytes(b);
        pairs.iter().map(|pair| b(&pair.b)).collect::<Vec<_>>()
    };
    let plain = load("nf4", DType::F32);
    let cached = plain.with_quantized_cache(Some(&cache));
    let expected = started(&plain);
    assert!(expected.iter().any(|b| b.iter().any(|byte| *byte != 0)));
    for start in ["first", "second"] {
        assert!(started(&cached) == expected, "the {start} start");
    }
    assert!(!entries(&cache).is_empty());
}

#[test]
fn sampling_says_what_it_writes_and_reads_and_none_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let sampled = |cache: &str| {
        let latents = folder.path().join("latents.safetensors");
        let done = Command::new(env!("CARGO_BIN_EXE_vtrain"))
            .args(
                "sample --device cpu --dtype f32 --prompt ball --num-frames 5 --height 32 --width 48 --steps 1"
                    .split(' '),
            )
            .args("--quantization nf4 --text-encoder-quantization int8 --quantization-cache".split(' '))
            .arg(cache)
            .arg("--model")
            .arg(fixture("../wan/wan-2.1-t2v"))
            .arg("--output")
            .arg(folder.path().join("clip.gif"))
            .arg("--output-latents")
            .arg(&latents)
            .env("XDG_CACHE_HOME", folder.path().join("home"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        let latents = candle_core::safetensors::load(latents, &Device::Cpu).unwrap()["latents"].clone();
        (said, latents)
    };
    let counts = |said: &str, what: &str| said.matches(what).count();
    let (said, expected) = sampled("none");
    assert_eq!(
        (counts(&said, "for the next start"), counts(&said, "read from")),
        (0, 0),
        "{said}"
    );
    assert!(!folder.path().join("home").exists());
    let elsewhere = folder.path().join("elsewhere").display().to_string();
    for (setting, place) in [
        ("auto", folder.path().join("home/vtrain/quantized")),
        (&elsewhere, PathBuf::from(&elsewhere)),
    ] {
        let (said, first) = sampled(setting);
        for form in ["nf4", "int8"] {
            let written = format!("matrices in {form} written to {}", place.display());
            assert_eq!(counts(&said, &written), 1, "{said}");
        }
        let (said, second) = sampled(setting);
        for form in ["nf4", "int8"] {
            let read = format!("matrices in {form} read from {}", place.display());
            assert_eq!((counts(&said, &read), counts(&said, "written to")), (1, 0), "{said}");
        }
        assert!(relative(&first, &expected) == 0.0 && relative(&second, &expected) == 0.0);
    }
}

#[test]
fn a_run_file_says_where_the_cache_is_from_its_own_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.yaml");
    fs::write(
        &file,
        "output_dir: out\nmodel: {path: ./model, quantization: nf4}\ndatasets: [{path: clips, buckets: [[9, 32, 48]]}]\n",
    )
    .unwrap();
    let cache = |set: &str| {
        let config = RunConfig::load(&file, &[format!("model.quantization_cache={set}")]).unwrap();
        let read_again = serde_json::to_value(&config.model).unwrap()["quantization_cache"].clone();
        (config.model.quantization_cache.path(), read_again)
    };
    assert_eq!(cache("none"), (None, "none".into()));
    let here = folder.path().join("stored");
    assert_eq!(cache("stored"), (Some(here.clone()), here.to_str().unwrap().into()));
    let (usual, said) = cache("auto");
    assert!(usual.is_some_and(|usual| usual.ends_with("vtrain/quantized")) && said == "auto");
}
