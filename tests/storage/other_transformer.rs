//! Another transformer than the checkpoint's own: GGUF files, single files of safetensors, folders.
//! scripts/fixtures/make_other_transformers.py writes the GGUF files, and asks diffusers with the weights that gguf-py
//! decodes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use tempfile::TempDir;
use vtrain::config::RunConfig;
use vtrain::data::cache::Cache;
use vtrain::lora::file;
use vtrain::lora::names::{Located, Names};
use vtrain::lora::trainable::{LoraPair, Trainable};
use vtrain::lora::{self, TargetModules};
use vtrain::models::denoiser::{Input, Scalar, Scalars};
use vtrain::models::{self, Family, FamilyName, registry, replace_transformer};
use vtrain::nn::gguf::GgufFile;
use vtrain::nn::lent::Matrix;
use vtrain::nn::{Load, WeightFolder, Weights};
use vtrain::ops::stored::Weight;
use vtrain::rng::Rng;
use vtrain::train::segments::{ActivationPolicy, FreeMemory, forward_backward};

use super::fixture;
use super::models::relative;
use super::on_the_fly::example;
use crate::fuzz::copy;

/// Families, their tiny checkpoints, and a case of their recorded inputs.
const WAN: &str = "wan/wan-2.1-t2v";
const LTX: &str = "ltx_video/ltx-0.9.0";
const COGVIDEOX: &str = "cogvideox/cogvideox-2b";

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn headers() -> Load {
    Load::headers(DType::F32, &Device::Cpu)
}

fn gguf(family: &str) -> PathBuf {
    fixture("other").join(family).join("model.gguf")
}

fn names(family: &str) -> &'static Names {
    registry::names()
        .into_iter()
        .find(|names| names.family == family)
        .unwrap()
}

fn own(checkpoint: &str) -> PathBuf {
    fixture("..").join(checkpoint)
}

/// The checkpoint that a GGUF file of `family` is for: everything but a transformer's weights.
fn checkpoint(family: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&own(if family == "wan" { WAN } else { LTX }), folder.path());
    let transformer = folder.path().join("transformer");
    fs::remove_file(transformer.join(WEIGHTS)).unwrap();
    fs::copy(
        gguf(family).with_file_name("config.json"),
        transformer.join("config.json"),
    )
    .unwrap();
    folder
}

fn open(checkpoint: &Path, transformer: &Path) -> anyhow::Result<Box<dyn Family>> {
    models::open(replace_transformer(checkpoint.into(), transformer)?, FamilyName::Auto)
}

fn answers() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture("other/answers.safetensors"), &Device::Cpu).unwrap()
}

fn input(family: &str) -> Input {
    let answers = answers();
    let of = |name: &str| answers[name].clone();
    let input = Input::new(of(&format!("{family}.latents")), of("timestep"), of("text"));
    match family {
        "ltx_video" => Input {
            scalars: Scalars::of(Scalar::FrameRate, vec![25.0]),
            ..input
        },
        _ => input,
    }
}

fn predict(family: &dyn Family, input: &Input) -> Tensor {
    family.denoiser(&load()).unwrap().forward(input).unwrap()
}

/// A folder with the weights of a GGUF file, decoded, under diffusers' names.
fn decoded(family: &str, to: &Path) {
    let file = GgufFile::open(&gguf(family)).unwrap();
    let tensors = file.header().tensors.iter().map(|(name, entry)| {
        let ours = name.strip_prefix("model.diffusion_model.").unwrap_or(name);
        let mut shape = entry.shape.clone();
        if ours.starts_with("blocks.") && ours.ends_with(".modulation") {
            shape.insert(0, 1);
        }
        let tensor = file.tensor(name, &shape, DType::F32, &Device::Cpu).unwrap();
        (names(family).tensors(ours)[0].name.clone(), tensor)
    });
    fs::create_dir_all(to).unwrap();
    candle_core::safetensors::save(&tensors.collect(), to.join(WEIGHTS)).unwrap();
    fs::copy(gguf(family).with_file_name("config.json"), to.join("config.json")).unwrap();
}

#[test]
fn a_gguf_file_predicts_what_diffusers_predicts_with_the_weights_that_gguf_py_decodes() {
    for family in ["wan", "ltx_video"] {
        let checkpoint = checkpoint(family);
        let opened = open(checkpoint.path(), &gguf(family)).unwrap();
        let prediction = predict(&*opened, &input(family));
        let off = relative(&prediction, &answers()[&format!("{family}.out")]);
        println!("{family}: {off:.1e}");
        assert!(off <= 1e-5, "{family}: {off:e}");
        // Its header alone shows that it can be built.
        opened.denoiser(&headers()).map(drop).unwrap();
        // Over the decoded weights it is the same.
        let dense = tempfile::tempdir().unwrap();
        decoded(family, dense.path());
        let dense = open(checkpoint.path(), dense.path()).unwrap();
        let off = relative(&prediction, &predict(&*dense, &input(family)));
        assert!(off <= 1e-6, "{family}: {off:e} off the decoded weights");
    }
}

#[test]
fn matrices_of_a_gguf_file_stay_in_few_bits_and_all_else_is_dense() {
    let checkpoint = checkpoint("wan");
    let folder = replace_transformer(checkpoint.path().into(), &gguf("wan")).unwrap();
    let weights = Weights::read(&folder.part("transformer"), &load()).unwrap();
    for (layer, shape, bytes) in [
        ("blocks.0.ffn.net.2", (32, 256), Some(32 * 144)), // Q4_K
        ("blocks.1.ffn.net.2", (32, 256), Some(32 * 210)), // Q6_K
        ("blocks.0.attn1.to_v", (32, 32), Some(32 * 34)),  // Q8_0
        ("blocks.1.attn2.to_q", (32, 32), Some(32 * 22)),  // Q5_0
        ("condition_embedder.time_proj", (192, 32), None), // F16
        ("proj_out", (16, 32), None),                      // BF16
    ] {
        let matrix = weights.pp(layer).matrix(shape, "weight").unwrap();
        let stored = match &matrix {
            Matrix::Own(Weight::Stored(stored)) => Some(stored.bytes()),
            _ => None,
        };
        assert_eq!(stored, bytes, "{layer}");
    }
}

/// The losses of three steps, and the gradients of all adapters in the last one.
fn trained(family: &dyn Family, input: &Input) -> (Vec<f32>, Vec<Tensor>) {
    let config = lora::Config {
        rank: 2,
        alpha: 2.0,
        target_modules: TargetModules::Suffixes(vec!["to_q".into(), "to_v".into(), "net.2".into()]),
        ..lora::Config::default()
    };
    let trainable = Arc::new(Trainable::new(&config, &registry::names(), Rng::new(3), &Device::Cpu).unwrap());
    let model = family.denoiser(&load().with_adapters(trainable.clone())).unwrap();
    let pairs = trainable.finish().unwrap();
    let vars: Vec<Var> = pairs.into_iter().flat_map(|LoraPair { a, b, .. }| [a, b]).collect();
    let loss = |prediction: &Tensor| prediction.sqr()?.mean_all();
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let saved = ActivationPolicy::Inputs.saved_activations(FreeMemory::Unknown);
        let passed = forward_backward(&*model, input, &loss, &vars, saved).unwrap();
        losses.push(passed.loss.to_scalar::<f32>().unwrap());
        gradients = passed.gradients.into_iter().map(Option::unwrap).collect();
        for (var, gradient) in vars.iter().zip(&gradients) {
            var.set(&(var.as_tensor() - (gradient * 0.05).unwrap()).unwrap())
                .unwrap();
        }
    }
    (losses, gradients)
}

fn learn_the_same(what: &str, ours: &dyn Family, dense: &dyn Family, input: &Input) {
    let ((losses, gradients), (dense_losses, dense_gradients)) = (trained(ours, input), trained(dense, input));
    assert!(losses[2] < losses[0], "{what}: {losses:?}");
    for (ours, theirs) in losses.iter().zip(dense_losses) {
        assert!((ours - theirs).abs() <= 1e-4 * theirs, "{what}: {ours} {theirs}");
    }
    assert!(!gradients.is_empty() && gradients.len() == dense_gradients.len());
    for (ours, theirs) in gradients.iter().zip(&dense_gradients) {
        let off = relative(ours, theirs);
        assert!(off <= 1e-4, "{what}: {off:e}");
    }
}

#[test]
fn adapters_over_a_gguf_file_learn_what_they_learn_over_its_decoded_weights() {
    for family in ["wan", "ltx_video"] {
        let (checkpoint, dense) = (checkpoint(family), tempfile::tempdir().unwrap());
        decoded(family, dense.path());
        let of = |path: &Path| open(checkpoint.path(), path).unwrap();
        learn_the_same(family, &*of(&gguf(family)), &*of(dense.path()), &input(family));
    }
}

/// The tensors of a tiny checkpoint's own transformer.
fn tensors(checkpoint: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(own(checkpoint).join("transformer").join(WEIGHTS), &Device::Cpu).unwrap()
}

/// The same with the makers' names behind a prefix.
fn original(checkpoint: &str, prefix: &str) -> HashMap<String, Tensor> {
    let names = names(checkpoint.split('/').next().unwrap());
    let renamed = tensors(checkpoint).into_iter().map(|(name, tensor)| {
        let original = names
            .original_tensor(&name)
            .unwrap_or_else(|| panic!("{name} has no original name"));
        assert_eq!(names.tensors(&original), [Located::whole(&name)]);
        (format!("{prefix}{original}"), tensor)
    });
    renamed.collect()
}

fn save(tensors: &HashMap<String, Tensor>, folder: &TempDir) -> PathBuf {
    let path = folder.path().join("single.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    path
}

#[test]
fn a_single_file_with_the_makers_names_predicts_what_the_folder_predicts_bit_for_bit() {
    for (checkpoint, case) in [
        (WAN, Some("wan-2.1-t2v.tall")),
        (LTX, Some("ltx-0.9.0.plain")),
        (COGVIDEOX, Some("cogvideox-2b.native")),
        ("wan/wan-2.1-i2v", None),
        ("cogvideox/cogvideox-1.5-5b-i2v", None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let plain = models::open(&own(checkpoint), FamilyName::Auto).unwrap();
        for prefix in ["", "model.diffusion_model.", "diffusion_model.", "diffusers"] {
            let mut file = match prefix {
                "diffusers" => tensors(checkpoint),
                _ => original(checkpoint, prefix),
            };
            if prefix.starts_with("model.") {
                // The makers' own file of LTX-Video has its VAE, too.
                file.insert("vae.decoder.conv_in.bias".into(), file.values().next().unwrap().clone());
            }
            let path = save(&file, &folder);
            let opened = open(&own(checkpoint), &path).unwrap();
            opened.denoiser(&headers()).map(drop).unwrap();
            // Nothing is missing or left over.
            opened.denoiser(&load()).map(drop).unwrap();
            let placed = replace_transformer((&own(checkpoint)).into(), &path).unwrap();
            let weights = Weights::read(&placed.part("transformer"), &load()).unwrap();
            for (name, tensor) in tensors(checkpoint) {
                let read = weights.get(tensor.dims(), &name).unwrap();
                assert_eq!(
                    super::bytes(&read),
                    super::bytes(&tensor),
                    "{checkpoint} {prefix}: {name}"
                );
            }
            let Some(case) = case else { continue };
            let family = checkpoint.split('/').next().unwrap();
            let recorded =
                candle_core::safetensors::load(fixture(&format!("../{family}/dit.safetensors")), &Device::Cpu);
            let input = example(&recorded.unwrap(), case);
            let (ours, theirs) = (predict(&*opened, &input), predict(&*plain, &input));
            assert_eq!(super::bytes(&ours), super::bytes(&theirs), "{checkpoint} {prefix}");
        }
    }
}

/// A file of Wan in scaled fp8, with the makers' names, and the weights that it stands for.
fn scaled_fp8(comfy: bool, folder: &TempDir) -> (PathBuf, PathBuf) {
    let (mut file, mut dense) = (HashMap::new(), tensors(WAN));
    for (name, tensor) in &mut dense {
        let original = names("wan").original_tensor(name).unwrap();
        if tensor.rank() != 2 || !name.starts_with("blocks.") {
            file.insert(original, tensor.clone());
            continue;
        }
        let largest = tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        let scale = (largest / 448.0).unwrap();
        let codes = tensor.broadcast_div(&scale).unwrap().to_dtype(DType::F8E4M3).unwrap();
        *tensor = codes.to_dtype(DType::F32).unwrap().broadcast_mul(&scale).unwrap();
        let layer = original.strip_suffix(".weight").unwrap();
        let part = if comfy { "weight_scale" } else { "scale_weight" };
        file.insert(format!("{layer}.{part}"), scale.reshape(1).unwrap());
        if comfy {
            let json = br#"{"format": "float8_e4m3fn"}"#;
            let json = Tensor::from_slice(json, json.len(), &Device::Cpu).unwrap();
            file.insert(format!("{layer}.comfy_quant"), json);
        }
        file.insert(original, codes);
    }
    if !comfy {
        let marker = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        file.insert("scaled_fp8".into(), marker.to_dtype(DType::F8E4M3).unwrap());
    }
    let to = folder.path().join("dense");
    fs::create_dir_all(&to).unwrap();
    candle_core::safetensors::save(&dense, to.join(WEIGHTS)).unwrap();
    fs::copy(own(WAN).join("transformer/config.json"), to.join("config.json")).unwrap();
    (save(&file, folder), to)
}

#[test]
fn a_file_in_scaled_fp8_predicts_and_learns_what_its_decoded_weights_do() {
    let recorded = candle_core::safetensors::load(fixture("../wan/dit.safetensors"), &Device::Cpu).unwrap();
    let input = example(&recorded, "wan-2.1-t2v.tall");
    for comfy in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (file, dense) = scaled_fp8(comfy, &folder);
        let of = |path: &Path| open(&own(WAN), path).unwrap();
        let (stored, dense) = (of(&file), of(&dense));
        stored.denoiser(&headers()).map(drop).unwrap();
        let off = relative(&predict(&*stored, &input), &predict(&*dense, &input));
        assert!(off <= 1e-5, "{off:e}");
        let plain = models::open(&own(WAN), FamilyName::Auto).unwrap();
        let lost = relative(&predict(&*stored, &input), &predict(&*plain, &input));
        assert!(lost > 1e-3, "the codes were not read: {lost:e}");
        learn_the_same("fp8", &*stored, &*dense, &input);
    }
}

fn vtrain(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain")).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn sampling_takes_another_transformer() {
    let (checkpoint, folder) = (checkpoint("wan"), tempfile::tempdir().unwrap());
    decoded("wan", &folder.path().join("dense"));
    let sample = |transformer: &Path| {
        let latents = folder.path().join("latents.safetensors");
        let output = vtrain(&[
            "sample",
            "--model",
            checkpoint.path().to_str().unwrap(),
            "--transformer",
            transformer.to_str().unwrap(),
            "--prompt=a red ball",
            "--num-frames=5",
            "--height=32",
            "--width=48",
            "--steps=2",
            "--guidance-scale=3",
            "--dtype=f32",
            "--device=cpu",
            "--output-latents",
            latents.to_str().unwrap(),
            "--output",
            folder.path().join("clip.gif").to_str().unwrap(),
        ]);
        assert!(output.status.success(), "{}", said(&output));
        candle_core::safetensors::load(latents, &Device::Cpu).unwrap()["latents"].clone()
    };
    let off = relative(&sample(&gguf("wan")), &sample(&folder.path().join("dense")));
    assert!(off <= 1e-4, "{off:e}");
    let gone = vtrain(&[
        "sample",
        "--model",
        checkpoint.path().to_str().unwrap(),
        "--prompt=x",
        "--output=x.gif",
    ]);
    assert!(
        said(&gone).contains("no safetensors file"),
        "its own has weights: {}",
        said(&gone)
    );
}

#[test]
fn a_run_file_takes_another_transformer_from_its_own_folder() {
    let (checkpoint, folder) = (checkpoint("wan"), tempfile::tempdir().unwrap());
    fs::copy(gguf("wan"), folder.path().join("other.gguf")).unwrap();
    crate::training::shapes(&folder.path().join("data"), 1);
    let run_file = folder.path().join("run.yaml");
    let run = |transformer: &str| {
        let text = format!(
            "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32, transformer: {transformer}}}\n\
             datasets: [{{path: data, buckets: [[9, 32, 48]]}}]\nlora: {{rank: 2, alpha: 2}}\ntrain: {{steps: 2}}\n\
             lr_scheduler: {{name: constant}}\n",
            checkpoint.path().display()
        );
        fs::write(&run_file, text).unwrap();
        RunConfig::load(&run_file, &[])
    };
    let config = run("other.gguf").unwrap();
    let path = fs::canonicalize(config.model.transformer.unwrap()).unwrap();
    assert_eq!(path, fs::canonicalize(folder.path().join("other.gguf")).unwrap());
    let checked = vtrain(&["train", "--config", run_file.to_str().unwrap(), "--dry-run"]);
    assert!(checked.status.success(), "{}", said(&checked));
    let trained = vtrain(&["train", "--config", run_file.to_str().unwrap()]);
    assert!(trained.status.success(), "{}", said(&trained));
    let card = fs::read_to_string(folder.path().join("out/README.md")).unwrap();
    assert!(card.contains("other.gguf") && card.contains("--transformer"), "{card}");
    let adapter = file::read(&folder.path().join("out/comfyui_lora.safetensors"), &registry::names()).unwrap();
    assert_eq!(adapter.about["vtrain.transformer"], "other.gguf");
    let own = file::read(
        &folder.path().join("out/pytorch_lora_weights.safetensors"),
        &registry::names(),
    )
    .unwrap();
    // As many numbers are in q4_0 as in q5_0, and more than in any other form.
    assert_eq!(own.about["vtrain.base_form"], "q5_0");
    let model = checkpoint.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(adapter.about["vtrain.base_model"], model);
    // The same file elsewhere is the same base; other weights are none.
    let dense = folder.path().join("dense");
    decoded("wan", &dense);
    fs::rename(folder.path().join("other.gguf"), folder.path().join("moved.gguf")).unwrap();
    for (transformer, resumes) in [("moved.gguf", true), ("dense", false)] {
        run(transformer).unwrap();
        let resumed = vtrain(&["train", "--config", run_file.to_str().unwrap(), "--set=train.steps=3"]);
        let told = said(&resumed);
        assert_eq!(resumed.status.success(), resumes, "{transformer}: {told}");
        assert!(resumes || told.contains("transformer"), "{told}");
    }
    assert!(
        run("''")
            .unwrap_err()
            .to_string()
            .contains("model.transformer: must not be empty")
    );
    run("gone.gguf").unwrap();
    let gone = vtrain(&["train", "--config", run_file.to_str().unwrap(), "--dry-run"]);
    let told = said(&gone);
    assert!(
        told.contains("model.transformer") && told.contains("gone.gguf: no such file or folder"),
        "{told}"
    );
}

#[test]
fn another_transformer_makes_another_fingerprint_and_its_place_does_not() {
    let (checkpoint, folder) = (checkpoint("wan"), tempfile::tempdir().unwrap());
    let file = folder.path().join("a.gguf");
    fs::copy(gguf("wan"), &file).unwrap();
    let print = |folder: &WeightFolder| {
        let cache = tempfile::tempdir().unwrap();
        Cache::open(cache.path())
            .fingerprint(folder, &["transformer", "scheduler"])
            .unwrap()
    };
    let with = |file: &Path| print(&replace_transformer(checkpoint.path().into(), file).unwrap());
    let first = with(&file);
    assert_ne!(first, print(&checkpoint.path().into()), "its own");
    fs::rename(&file, folder.path().join("b.gguf")).unwrap();
    let file = folder.path().join("b.gguf");
    assert_eq!(with(&file), first, "the name");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_ne!(with(&file), first, "a bit of the weights");
    fs::copy(gguf("wan"), &file).unwrap();
    let config = checkpoint.path().join("transformer/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + " ").unwrap();
    assert_ne!(with(&file), first, "the config");
    decoded("wan", &folder.path().join("dense"));
    assert_ne!(with(&folder.path().join("dense")), first, "a folder");
}

fn refused(checkpoint: &Path, transformer: &Path) -> [String; 2] {
    [load(), headers()].map(|load| {
        let built = open(checkpoint, transformer).and_then(|family| family.denoiser(&load).map(drop));
        format!("{:#}", built.unwrap_err())
    })
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

/// What spoils the tensors of a file.
type Change = dyn Fn(&mut HashMap<String, Tensor>);

#[test]
fn what_does_not_fit_is_told_with_the_names_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let told = |change: &Change| {
        let mut file = original(WAN, "diffusion_model.");
        change(&mut file);
        refused(&own(WAN), &save(&file, &folder))
    };
    let q = "diffusion_model.blocks.1.self_attn.q.weight";
    let of = "blocks.1.attn1.to_q.weight (diffusion_model.blocks.1.self_attn.q.weight in the file)";
    let cases: [(Box<Change>, String); 4] = [
        (
            Box::new(|file| _ = file.remove(q)),
            format!("the tensor {of} [28, 28] is missing"),
        ),
        (
            Box::new(|file| _ = file.insert(q.into(), ones(&[28, 27]))),
            format!("the tensor {of} should be [28, 28] by config.json, but is [28, 27]"),
        ),
        (
            Box::new(|file| _ = file.insert("diffusion_model.blocks.2.self_attn.q.weight".into(), ones(&[28, 28]))),
            "blocks.2.attn1.to_q.weight (diffusion_model.blocks.2.self_attn.q.weight in the file)".into(),
        ),
        (
            Box::new(|file| _ = file.insert("diffusion_model.vace.weight".into(), ones(&[1]))),
            "vace.weight (diffusion_model.vace.weight in the file)".into(),
        ),
    ];
    for (change, wanted) in cases {
        for said in told(&change) {
            assert!(
                said.contains(&wanted) && said.contains("single.safetensors"),
                "{wanted}: {said}"
            );
        }
    }
    let twice = |file: &mut HashMap<String, Tensor>| {
        file.insert("diffusion_model.blocks.1.attn1.to_q.weight".into(), ones(&[28, 28]));
    };
    assert!(
        told(&twice)[0].contains("are both blocks.1.attn1.to_q.weight"),
        "{:?}",
        told(&twice)
    );
    // A GGUF file for another size of the model.
    for said in refused(&own(WAN), &gguf("wan")) {
        assert!(
            said.contains("model.gguf") && said.contains("by config.json, but is"),
            "{said}"
        );
    }
}

#[test]
fn a_transformer_of_another_kind_is_refused_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let written = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let flux = fs::read(gguf("wan")).unwrap();
    let at = flux.windows(3).position(|bytes| bytes == b"wan").unwrap();
    let flux = written("flux.gguf", &[&flux[..at], b"sdx", &flux[at + 3..]].concat());
    let single = |tensors: &HashMap<String, Tensor>| save(tensors, &folder);
    let one = |name: &str| {
        HashMap::from([(
            name.to_string(),
            Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap(),
        )])
    };
    let wan = own(WAN);
    let first = |checkpoint: &Path, transformer: &Path| refused(checkpoint, transformer)[0].clone();
    for (said, wanted) in [
        (
            first(&wan, &flux),
            "general.architecture is 'sdx', and the checkpoint is of Wan, whose files have 'wan'",
        ),
        (first(&wan, &gguf("ltx_video")), "general.architecture is 'ltxv'"),
        (
            first(&own(COGVIDEOX), &gguf("wan")),
            "no program has GGUF files of CogVideoX",
        ),
        (
            first(&wan, &single(&original(LTX, ""))),
            "is a transformer of LTX-Video, and the checkpoint is of Wan",
        ),
        (
            first(&wan, &own(LTX).join("transformer")),
            "is a transformer of LTX-Video, and the checkpoint one of Wan",
        ),
        (
            first(&wan, &own(LTX)),
            "is a whole checkpoint; give its folder transformer",
        ),
        (first(&wan, folder.path()), "has no config.json"),
        (first(&wan, &folder.path().join("gone.gguf")), "no such file or folder"),
        (first(&wan, &written("text.gguf", b"not one")), "not a GGUF file"),
        (first(&wan, &written("pickle.pth", b"PK\x03\x04 and so on")), "pickle"),
        (
            first(&wan, &written("text.safetensors", b"what is this?")),
            "not a readable safetensors file",
        ),
        (
            first(&wan, &single(&one("encoder.weight"))),
            "none of its 1 tensors has a name that Wan has",
        ),
        (
            first(
                &own(COGVIDEOX),
                &single(&one("transformer.layers.0.attention.query_key_value.weight")),
            ),
            "query, key and value in one matrix",
        ),
        (
            first(&wan, &own("wan/lora/pytorch_lora_weights.safetensors")),
            "is an adapter file, which --lora and lora.init take",
        ),
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    // Given as the model itself, it is said where it belongs.
    for path in [gguf("wan"), single(&original(WAN, ""))] {
        let said = format!("{:#}", models::open(&path, FamilyName::Auto).map(drop).unwrap_err());
        assert!(
            said.contains("model.transformer") && said.contains("model.path"),
            "{said}"
        );
    }
}

/// A stored matrix of another shape than the model's shows in the headers, whatever its form.
#[test]
fn the_shapes_of_stored_matrices_are_checked_by_headers_alone() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["nf4", "int8"] {
        let from = fixture("transformers").join(kind);
        copy(&from, folder.path());
        let path = folder.path().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        let wider = text.replace("\"ffn_dim\": 45", "\"ffn_dim\": 46");
        assert_ne!(text, wider);
        fs::write(path, wider).unwrap();
        let error = vtrain::models::wan::dit::Dit::load(folder.path(), &headers())
            .map(drop)
            .unwrap_err();
        let said = format!("{error:#}");
        let wanted = "the tensor blocks.0.ffn.net.2.weight should be [28, 46] by config.json, but is [28, 45]";
        assert!(said.contains(wanted), "{kind}: {said}");
    }
    let (file, _) = scaled_fp8(false, &folder);
    let checkpoint = tempfile::tempdir().unwrap();
    copy(&own(WAN), checkpoint.path());
    let path = checkpoint.path().join("transformer/config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, text.replace("\"ffn_dim\": 45", "\"ffn_dim\": 46")).unwrap();
    for said in refused(checkpoint.path(), &file) {
        assert!(
            said.contains("should be [46, 28] by config.json, but is [45, 28]"),
            "{said}"
        );
    }
}

/// Six hundred GGUF files, or `VTRAIN_FUZZ=10000`, with a few bytes of the header changed, or cut, in place of a transformer:
/// read, or refused by their names, without a panic.
#[test]
fn no_gguf_file_does_harm_in_place_of_a_transformer() {
    let (checkpoint, folder) = (checkpoint("wan"), tempfile::tempdir().unwrap());
    let whole = fs::read(gguf("wan")).unwrap();
    let header = GgufFile::open(&gguf("wan")).unwrap();
    let header = header.header().tensors.values().map(|entry| entry.start).min().unwrap() as i64;
    let path = folder.path().join("spoilt.gguf");
    let mut rng = Rng::new(11);
    let (mut refused, mut read) = (0, 0);
    let cases: usize = std::env::var("VTRAIN_FUZZ").map_or(600, |n| n.parse().unwrap());
    for case in 0..cases {
        let mut file = whole.clone();
        for _ in 0..=rng.randint(0, 3, 1)[0] {
            let at = rng.randint(0, header, 1)[0] as usize;
            file[at] = [0, 1, 0x7f, 0x80, 0xff, rng.randint(0, 256, 1)[0] as u8][rng.randint(0, 6, 1)[0] as usize];
        }
        if rng.randint(0, 8, 1)[0] == 0 {
            file.truncate(rng.randint(0, whole.len() as i64, 1)[0] as usize);
        }
        fs::write(&path, file).unwrap();
        let load = if case % 50 == 0 { load() } else { headers() };
        match open(checkpoint.path(), &path).and_then(|family| family.denoiser(&load).map(drop)) {
            Ok(()) => read += 1,
            Err(error) => {
                let error = format!("{error:#}");
                assert!(error.contains("spoilt.gguf"), "case {case}: {error}");
                refused += 1;
            }
        }
    }
    println!("{refused} refused, {read} read");
    assert!(
        refused > cases / 2 && read > cases / 100,
        "{refused} refused, {read} read"
    );
}
