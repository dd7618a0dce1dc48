//! `vtrain lora merge` into a transformer in few bits.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use vtrain::lora::adapters::{AdapterFile, Adapters};
use vtrain::lora::diffusers::{self, Named};
use vtrain::lora::{Config, TargetModules, file};
use vtrain::models::denoiser::Denoiser;
use vtrain::models::registry;
use vtrain::models::wan::dit::Dit as Wan;
use vtrain::nn::storage::bitsandbytes_4bit::FourBitCode;
use vtrain::nn::storage::layout::FileForm;
use vtrain::nn::{Load, Weights};
use vtrain::rng::Rng;

use super::models::{answers, input, relative};
use super::written::{WEIGHTS, checkpoint, quantize, stderr, vtrain};

/// Layers in few bits, and one that stays dense among them.
const LAYERS: [(&str, [usize; 2]); 3] = [
    ("blocks.0.attn1.to_q", [28, 28]),
    ("blocks.1.ffn.net.0.proj", [45, 28]),
    ("condition_embedder.time_embedder.linear_1", [28, 18]),
];
const STRENGTH: f64 = 0.75;

/// Writes an adapter of a trained rank 2.
fn adapter(to: &Path, layers: &[(&str, [usize; 2])]) -> PathBuf {
    let mut rng = Rng::new(5);
    let mut draw = |shape: [usize; 2]| {
        let numbers = rng.randn(shape[0] * shape[1]).into_iter().map(|x| 0.3 * x).collect();
        Tensor::from_vec(numbers, &shape, &Device::Cpu).unwrap()
    };
    let drawn: Vec<_> = layers
        .iter()
        .map(|(name, [out, features])| (*name, [*features], draw([2, *features]), draw([*out, 2])))
        .collect();
    let named: Vec<Named> = drawn
        .iter()
        .map(|(layer, input, a, b)| Named { layer, input, a, b })
        .collect();
    let config = Config {
        rank: 2,
        alpha: 2.0,
        target_modules: TargetModules::Suffixes(layers.iter().map(|(name, _)| name.to_string()).collect()),
        ..Config::default()
    };
    let path = to.join("adapter.safetensors");
    fs::write(&path, diffusers::to_bytes(&config, &named, Some("nf4")).unwrap()).unwrap();
    path
}

fn applied(path: &Path) -> AdapterFile {
    let read = file::read(path, &registry::names()).unwrap();
    read.apply(path, STRENGTH).unwrap()
}

/// A checkpoint in a form, and an adapter for it.
fn based_on(form: &str, folder: &Path) -> (PathBuf, PathBuf) {
    let base = folder.join("base");
    quantize(form, &checkpoint(), &base);
    (base, adapter(folder, &LAYERS))
}

fn merge(base: &Path, adapter: &Path, to: &Path, options: &str) -> Output {
    let lora = format!("{}={STRENGTH}", adapter.display());
    let mut args = vec!["lora", "merge", "--model", base.to_str().unwrap(), "--lora", &lora];
    args.extend(options.split(' ').filter(|word| !word.is_empty()));
    args.push(to.to_str().unwrap());
    vtrain(&args)
}

#[track_caller]
fn merged(base: &Path, adapter: &Path, to: &Path, options: &str) -> String {
    let output = merge(base, adapter, to, options);
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout.clone()).unwrap() + &stderr(&output)
}

fn predict(folder: &Path, load: &Load) -> Tensor {
    let model = Wan::load(&folder.join("transformer"), load).unwrap();
    model.forward(&input(&answers())).unwrap()
}

fn f32_load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn config(folder: &Path) -> String {
    fs::read_to_string(folder.join("transformer/config.json")).unwrap()
}

#[test]
fn merged_dense_it_predicts_what_the_base_in_few_bits_does_under_the_adapter() {
    for form in ["nf4", "bnb-int8", "int8", "fp8-scaled", "fp8"] {
        let folder = tempfile::tempdir().unwrap();
        let (base, adapter) = based_on(form, folder.path());
        let out = folder.path().join("merged");
        let said = merged(&base, &adapter, &out, "--dtype f32");
        assert!(said.contains("will be dense, in f32"), "{said}");
        let adapters = Arc::new(Adapters::new(vec![applied(&adapter)], &Device::Cpu));
        let under = predict(&base, &f32_load().with_adapters(adapters));
        let off = relative(&predict(&out, &f32_load()), &under);
        assert!(off <= 1e-4, "{form}: {off:e}");
        assert!(
            relative(&under, &predict(&base, &f32_load())) > 1e-2,
            "{form}: the adapter does nothing"
        );
        assert!(!config(&out).contains("quantization_config"), "{form}");
        assert!(out.join("vae/config.json").exists() && out.join("model_index.json").exists());
    }
}

#[test]
fn matrices_that_become_dense_are_in_bf16_unless_asked_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter) = based_on("nf4", folder.path());
    let out = folder.path().join("merged");
    let said = merged(&base, &adapter, &out, "");
    assert!(said.contains("will be dense, in bf16"), "{said}");
    let file = fs::read(out.join("transformer").join(WEIGHTS)).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let dtype = |name: &str| format!("{:?}", file.tensor(name).unwrap().dtype());
    assert_eq!(dtype("blocks.0.attn1.to_q.weight"), "BF16");
    assert_eq!(dtype("condition_embedder.time_embedder.linear_1.weight"), "F32");
}

/// The tensors of a transformer's file, as bytes.
fn parts(folder: &Path) -> HashMap<String, Vec<u8>> {
    let file = fs::read(folder.join("transformer").join(WEIGHTS)).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, view)| (name, view.data().to_vec())).collect()
}

#[test]
fn merged_as_it_was_changed_matrices_are_stored_anew_and_all_others_are_the_same_bytes() {
    for (form, stored) in [
        ("nf4", FileForm::FourBit(FourBitCode::Nf4, true)),
        ("fp4 --no-double-quant", FileForm::FourBit(FourBitCode::Fp4, false)),
        ("bnb-int8", FileForm::BitsandbytesInt8),
        ("int8", FileForm::Int8),
        ("fp8-scaled", FileForm::Fp8Scaled),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (base, adapter) = based_on(form, folder.path());
        let out = folder.path().join("merged");
        merged(&base, &adapter, &out, "--quantization as-it-was");
        assert_eq!(config(&out), config(&base), "{form}");
        let (before, after) = (parts(&base), parts(&out));
        let weights = Weights::read(&base.join("transformer").as_path().into(), &f32_load()).unwrap();
        let applied = applied(&adapter);
        let mut changed = Vec::new();
        for (layer, shape) in &LAYERS[..2] {
            let path = format!("{layer}.weight");
            let decoded = weights.get(shape.as_slice(), &path).unwrap();
            let lora = &applied.layers[*layer];
            let b = (&lora.b * (lora.scale() * STRENGTH)).unwrap();
            let sum = (decoded + b.matmul(&lora.a).unwrap()).unwrap();
            let expected = stored.store(&sum, DType::F32).unwrap();
            let specs = stored.parts(&path, (shape[0], shape[1]), DType::F32);
            for (spec, part) in specs.iter().zip(&expected.parts) {
                assert!(after[&spec.name] == *part, "{form}: {}", spec.name);
                changed.push(spec.name.clone());
            }
        }
        changed.push("condition_embedder.time_embedder.linear_1.weight".into());
        assert_eq!(before.len(), after.len());
        for (name, part) in &before {
            assert!(changed.contains(name) || after[name] == *part, "{form}: {name}");
        }
        assert!(before[&changed[0]] != after[&changed[0]]);
        predict(&out, &f32_load());
    }
}

#[test]
fn merged_into_another_form_it_is_stored_and_read_in_that_one() {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter) = based_on("int8", folder.path());
    for (i, (from, form)) in [(base, "nf4"), (checkpoint(), "fp8-scaled")].into_iter().enumerate() {
        let out = folder.path().join(format!("merged-{i}"));
        let said = merged(&from, &adapter, &out, &format!("--quantization {form}"));
        assert!(said.contains(form) && said.contains("total"), "{said}");
        let adapters = Arc::new(Adapters::new(vec![applied(&adapter)], &Device::Cpu));
        let under = predict(&from, &f32_load().with_adapters(adapters));
        let off = relative(&predict(&out, &f32_load()), &under);
        assert!(off < 0.2, "{form}: {off}");
        let method = if form == "nf4" { "bitsandbytes" } else { "torchao" };
        assert!(
            config(&out).contains(&format!("\"quant_method\": \"{method}\"")),
            "{}",
            config(&out)
        );
    }
}

#[test]
fn what_cannot_be_merged_is_refused_by_name_all_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter_file) = based_on("nf4", folder.path());
    let out = folder.path().join("out");
    let refused = |base: &Path, adapter: &Path, options: &str, code: i32| {
        let output = merge(base, adapter, &out, options);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(!out.exists());
        stderr(&output)
    };
    let dense = refused(&checkpoint(), &adapter_file, "--quantization as-it-was", 2);
    assert!(dense.contains("no matrix of the transformer is in few bits"), "{dense}");
    let gguf = refused(&base, &adapter_file, "--quantization q8_0", 2);
    assert!(gguf.contains("then use vtrain quantize"), "{gguf}");
    let unknown = refused(&base, &adapter_file, "--quantization q9", 2);
    assert!(
        unknown.contains("there are none, as-it-was, fp8, fp8-scaled, int8, nf4, fp4, bnb-int8"),
        "{unknown}"
    );
    fs::create_dir(folder.path().join("misfit")).unwrap();
    let wrong = [("blocks.0.attn1.to_q", [30, 28]), ("blocks.7.attn1.to_q", [28, 28])];
    let misfit = adapter(&folder.path().join("misfit"), &wrong);
    let said = refused(&base, &misfit, "", 4);
    for layer in ["blocks.0.attn1.to_q", "blocks.7.attn1.to_q"] {
        assert!(said.contains(layer), "{said}");
    }
}

#[test]
fn inspect_says_the_base_form_and_what_fits_a_base_in_few_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter_file) = based_on("nf4", folder.path());
    let inspect = |file: &Path| {
        let output = vtrain(&[
            "lora".as_ref(),
            "inspect".as_ref(),
            "--model".as_ref(),
            base.as_os_str(),
            file.as_os_str(),
        ]);
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = inspect(&adapter_file);
    assert!(
        said.contains("vtrain.base_form: nf4") && said.contains("all of it fits the model"),
        "{said}"
    );
    fs::create_dir(folder.path().join("misfit")).unwrap();
    let misfit = adapter(&folder.path().join("misfit"), &[("blocks.0.attn1.to_q", [30, 28])]);
    assert!(inspect(&misfit).contains("not applied: 1"));
}
