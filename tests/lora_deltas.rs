//! Distilled adapters: differences of weights, biases, norms and tables in addition to low-rank products. The expected
//! numbers are `W + strength (scale B A + D)`, worked out here in f64.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use vtrain::lora::adapters::{Adapter, AdapterFile, Adapters, Deltas};
use vtrain::lora::file::{self, ParsedAdapter};
use vtrain::lora::format::Format;
use vtrain::lora::merge::Folder;
use vtrain::lora::resize::resize;
use vtrain::lora::trainable::Trainable;
use vtrain::lora::{Config, TargetModules};
use vtrain::models::registry;
use vtrain::models::wan::dit::Dit;
use vtrain::nn::Load;
use vtrain::nn::{Weights, linear, linear_no_bias};
use vtrain::rng::Rng;

type Tensors = BTreeMap<String, Tensor>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

const MODEL: &str = "wan/wan-2.1-t2v";

fn weights(folder: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            tensors.extend(candle_core::safetensors::load(&path, &Device::Cpu).unwrap());
        }
    }
    tensors
}

fn random(rng: &mut Rng, shape: &[usize]) -> Tensor {
    let tensor = Tensor::from_vec(rng.randn(shape.iter().product()), shape, &Device::Cpu).unwrap();
    (tensor * 0.1).unwrap()
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F64).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    wide(tensor).flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference over the largest number.
fn error(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    let (ours, theirs) = (values(ours), values(theirs));
    let largest = theirs.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let apart = ours.iter().zip(&theirs).map(|(x, y)| (x - y).abs());
    apart.fold(0.0, f64::max) / largest
}

fn write(path: &Path, tensors: &Tensors) {
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn vtrain(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn read(path: &Path) -> ParsedAdapter {
    let read = file::read(path, &registry::names()).unwrap();
    read.check().unwrap();
    read
}

/// An adapter file, tensor by tensor, and what it adds to which parameter of the model, in f64.
#[derive(Default)]
struct Distilled {
    file: Tensors,
    added: Tensors,
}

impl Distilled {
    fn add(&mut self, parameter: &str, delta: Tensor) {
        let delta = match self.added.remove(parameter) {
            Some(sum) => (sum + delta).unwrap(),
            None => delta,
        };
        self.added.insert(parameter.into(), delta);
    }

    /// `name` is what the file calls a difference of `parameter`.
    fn whole(&mut self, name: &str, parameter: &str, delta: Tensor) {
        self.add(parameter, wide(&delta));
        self.file.insert(format!("diffusion_model.{name}"), delta);
    }

    /// A product of rank 4; `alpha` is written as it is.
    fn low_rank(&mut self, name: &str, layer: &str, [a, b]: [Tensor; 2], alpha: Option<Tensor>) {
        let scale = alpha.as_ref().map_or(1.0, |alpha| values(alpha)[0] / 4.0);
        let flat = |tensor: &Tensor| wide(tensor).flatten_from(1).unwrap();
        let mut shape = [&[b.dims()[0]], &a.dims()[1..]].concat();
        while shape.len() > 2 && shape.last() == Some(&1) {
            shape.pop(); // a linear layer's weight has two sides
        }
        let product = (flat(&b).matmul(&flat(&a)).unwrap() * scale)
            .unwrap()
            .reshape(shape)
            .unwrap();
        self.add(&format!("{layer}.weight"), product);
        let name = format!("diffusion_model.{name}");
        self.file.insert(format!("{name}.lora_down.weight"), a);
        self.file.insert(format!("{name}.lora_up.weight"), b);
        self.file.extend(alpha.map(|alpha| (format!("{name}.alpha"), alpha)));
    }
}

/// One number in every format that an alpha was seen in, as a scalar and as a list of one.
fn alphas() -> Vec<Option<Tensor>> {
    let scalar = Tensor::new(3f32, &Device::Cpu).unwrap();
    let listed = Tensor::new(&[3f32], &Device::Cpu).unwrap();
    let mut alphas = vec![None];
    for dtype in [DType::I64, DType::BF16, DType::F16, DType::F64, DType::U8] {
        alphas.push(Some(scalar.to_dtype(dtype).unwrap()));
        alphas.push(Some(listed.to_dtype(dtype).unwrap()));
    }
    alphas
}

/// Distilled Wan like CausVid, AccVid and lightx2v: products on the blocks' layers, and differences of everything there is.
fn distilled(seed: u64) -> Distilled {
    let mut rng = Rng::new(seed);
    let mut made = Distilled::default();
    let base = weights(&fixture(MODEL).join("transformer"));
    let mut alphas = alphas().into_iter().cycle();
    for block in 0..2 {
        let at = |name: &str| format!("blocks.{block}.{name}");
        let mut layers = vec![
            ("ffn.0".to_string(), "ffn.net.0.proj".to_string()),
            ("ffn.2".into(), "ffn.net.2".into()),
        ];
        for (theirs, ours) in [("self_attn", "attn1"), ("cross_attn", "attn2")] {
            for (x, y) in [("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")] {
                layers.push((format!("{theirs}.{x}"), format!("{ours}.{y}")));
            }
            for x in ["norm_q", "norm_k"] {
                let delta = random(&mut rng, &[28]);
                made.whole(
                    &at(&format!("{theirs}.{x}.diff")),
                    &at(&format!("{ours}.{x}.weight")),
                    delta,
                );
            }
        }
        for (theirs, ours) in layers {
            let [rows, columns] = *base[&at(&format!("{ours}.weight"))].dims() else {
                unreachable!("a matrix")
            };
            let pair = [random(&mut rng, &[4, columns]), random(&mut rng, &[rows, 4])];
            made.low_rank(&at(&theirs), &at(&ours), pair, alphas.next().unwrap());
            let delta = random(&mut rng, &[rows]);
            made.whole(&at(&format!("{theirs}.diff_b")), &at(&format!("{ours}.bias")), delta);
        }
        for (end, parameter) in [("diff", "weight"), ("diff_b", "bias")] {
            let delta = random(&mut rng, &[28]);
            made.whole(&at(&format!("norm3.{end}")), &at(&format!("norm2.{parameter}")), delta);
        }
    }
    // A layer with both, in half precision.
    let delta = random(&mut rng, &[28, 28]).to_dtype(DType::BF16).unwrap();
    made.whole("blocks.1.self_attn.q.diff", "blocks.1.attn1.to_q.weight", delta);
    for (name, parameter) in [
        ("blocks.0.modulation.diff", "blocks.0.scale_shift_table"), // ComfyUI
        ("blocks.1.diff_m", "blocks.1.scale_shift_table"),          // lightx2v
        ("head.diff_m", "scale_shift_table"),
        ("head.head.diff", "proj_out.weight"),
        ("head.head.diff_b", "proj_out.bias"),
        ("time_projection.1.diff_b", "condition_embedder.time_proj.bias"), // of a layer without a product: AccVid
        ("patch_embedding.diff", "patch_embedding.weight"),
        ("patch_embedding.diff_b", "patch_embedding.bias"),
    ] {
        let delta = random(&mut rng, base[parameter].dims());
        made.whole(name, parameter, delta);
    }
    made
}

/// A product on the convolution that embeds patches, and a difference of it.
fn on_patches(seed: u64) -> Distilled {
    let mut rng = Rng::new(seed);
    let mut made = Distilled::default();
    let pair = [random(&mut rng, &[4, 4, 1, 2, 2]), random(&mut rng, &[28, 4, 1, 1, 1])];
    let alpha = Tensor::new(2i64, &Device::Cpu).unwrap();
    made.low_rank("patch_embedding", "patch_embedding", pair, Some(alpha));
    made.whole(
        "patch_embedding.diff",
        "patch_embedding.weight",
        random(&mut rng, &[28, 4, 1, 2, 2]),
    );
    // A linear layer written as a convolution of one point.
    let pair = [random(&mut rng, &[4, 28, 1, 1]), random(&mut rng, &[28, 4, 1, 1])];
    made.low_rank("blocks.0.self_attn.q", "blocks.0.attn1.to_q", pair, None);
    made
}

#[test]
fn a_merged_checkpoint_has_every_difference_of_several_files_by_their_strengths() {
    let folder = tempfile::tempdir().unwrap();
    let base = weights(&fixture(MODEL).join("transformer"));
    let (first, second) = (distilled(1), on_patches(2));
    let paths = ["first.safetensors", "second.safetensors"].map(|name| folder.path().join(name));
    write(&paths[0], &first.file);
    write(&paths[1], &second.file);
    let out = folder.path().join("merged");
    let (model, out_text) = (fixture(MODEL), out.to_str().unwrap());
    let [one, two] = [(&paths[0], 0.5), (&paths[1], -1.5)].map(|(path, scale)| format!("{}={scale}", path.display()));
    let args = [
        "lora",
        "merge",
        "--model",
        model.to_str().unwrap(),
        "--lora",
        &one,
        "--lora",
        &two,
        out_text,
    ];
    let output = vtrain(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    let merged = weights(&out.join("transformer"));
    let mut changed = 0;
    for (name, weight) in &base {
        let mut expected = wide(weight);
        for (file, strength) in [(&first, 0.5), (&second, -1.5)] {
            if let Some(delta) = file.added.get(name) {
                expected = (expected + (delta * strength).unwrap()).unwrap();
                changed += 1;
            }
        }
        assert!(error(&merged[name], &expected) < 1e-6, "{name}");
    }
    assert_eq!(changed, first.added.len() + second.added.len());
}

/// The latents after one step, as a file.
fn sampled(model: &Path, loras: &[String], folder: &Path, dtype: &str) -> Tensor {
    let latents = folder.join("latents.safetensors");
    let mut args = vec![
        "sample",
        "--model",
        model.to_str().unwrap(),
        "--prompt",
        "x",
        "--num-frames",
        "5",
        "--height",
        "32",
    ];
    args.extend([
        "--width",
        "48",
        "--steps",
        "1",
        "--guidance-scale",
        "1",
        "--dtype",
        dtype,
        "--device",
        "cpu",
    ]);
    let (clip, kept) = (folder.join("clip.gif"), latents.clone());
    args.extend([
        "--output",
        clip.to_str().unwrap(),
        "--output-latents",
        kept.to_str().unwrap(),
    ]);
    for lora in loras {
        args.extend(["--lora", lora.as_str()]);
    }
    let output = vtrain(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    candle_core::safetensors::load(latents, &Device::Cpu).unwrap()["latents"].clone()
}

#[test]
fn sampling_under_the_files_is_sampling_from_the_merged_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut loras = Vec::new();
    for (name, file, strength) in [("first", distilled(1), 0.5), ("second", on_patches(2), -1.5)] {
        let path = folder.path().join(format!("{name}.safetensors"));
        write(&path, &file.file);
        loras.push(format!("{}={strength}", path.display()));
    }
    let (model, out) = (fixture(MODEL), folder.path().join("merged"));
    let mut args = vec![
        "lora",
        "merge",
        "--model",
        model.to_str().unwrap(),
        out.to_str().unwrap(),
    ];
    for lora in &loras {
        args.extend(["--lora", lora.as_str()]);
    }
    let output = vtrain(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    let merged = sampled(&out, &[], folder.path(), "f32");
    let under = sampled(&model, &loras, folder.path(), "f32");
    assert!(error(&under, &merged) < 1e-5, "{:e}", error(&under, &merged));
    let plain = sampled(&model, &[], folder.path(), "f32");
    assert!(error(&plain, &merged) > 1e-2, "the adapters do nothing");
    // Without products nothing is rounded otherwise, not even in half precision.
    let mut whole = distilled(3);
    whole.file.retain(|name, _| name.contains(".diff"));
    let path = folder.path().join("whole.safetensors");
    write(&path, &whole.file);
    let (lora, out) = (path.to_str().unwrap().to_string(), folder.path().join("merged-whole"));
    let output = vtrain(&[
        "lora",
        "merge",
        "--model",
        model.to_str().unwrap(),
        "--lora",
        &lora,
        out.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let merged = sampled(&out, &[], folder.path(), "bf16");
    let under = sampled(&model, &[lora], folder.path(), "bf16");
    assert_eq!(values(&under), values(&merged));
}

/// Adapters on every attention layer of a block in diffusers' names, with biases of lora_B and alpha in the header.
fn with_biases() -> (Tensors, BTreeMap<String, String>) {
    let mut rng = Rng::new(4);
    let mut file = Tensors::new();
    for layer in ["to_q", "to_k"].map(|layer| format!("blocks.0.attn1.{layer}")) {
        for (end, shape) in [
            ("lora_A.weight", &[4, 28][..]),
            ("lora_B.weight", &[28, 4]),
            ("lora_B.bias", &[28]),
        ] {
            file.insert(format!("transformer.{layer}.{end}"), random(&mut rng, shape));
        }
    }
    let settings = r#"{"transformer.r": 4, "transformer.lora_alpha": 12, "transformer.lora_bias": true,
        "transformer.target_modules": ["blocks.0.attn1.to_q", "blocks.0.attn1.to_k"]}"#;
    let about = BTreeMap::from([("lora_adapter_metadata".to_string(), settings.to_string())]);
    (file, about)
}

/// In PEFT `y = W x + b + scaling (B A x + bias)`.
#[test]
fn a_bias_of_lora_b_is_scaled_as_its_product_is() {
    let (tensors, about) = with_biases();
    let bytes = safetensors::serialize(&tensors, Some(about.into_iter().collect())).unwrap();
    let read = file::from_bytes(&bytes, None, &registry::names()).unwrap();
    read.check().unwrap();
    assert_eq!(read.deltas.len(), 2);
    for layer in ["blocks.0.attn1.to_q", "blocks.0.attn1.to_k"] {
        let bias = (wide(&tensors[&format!("transformer.{layer}.lora_B.bias")]) * 3.0).unwrap();
        assert!(error(&read.deltas[&format!("{layer}.bias")], &bias) < 1e-7);
    }
    // A file for diffusers has them again, and so has one for ComfyUI, as differences.
    for format in [Format::Diffusers, Format::ComfyUi] {
        let again = file::from_bytes(&read.write(format).unwrap(), None, &registry::names()).unwrap();
        again.check().unwrap();
        for (name, delta) in &read.deltas {
            assert!(error(&again.deltas[name], delta) < 1e-6, "{format:?} {name}");
        }
    }
}

/// diffusers and PEFT say what such files do to a linear layer.
#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn diffusers_and_peft_take_biases_for_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (tensors, about) = with_biases();
    let bytes = safetensors::serialize(&tensors, Some(about.into_iter().collect())).unwrap();
    let read = file::from_bytes(&bytes, None, &registry::names()).unwrap();
    // Wan's blocks from a file for ComfyUI: diffusers makes biases of lora_B of .diff_b.
    let mut files = vec![folder.path().join("theirs.safetensors")];
    std::fs::write(&files[0], &bytes).unwrap();
    for format in [Format::Diffusers, Format::ComfyUi] {
        files.push(folder.path().join(format!("{format:?}.safetensors")));
        std::fs::write(files.last().unwrap(), read.write(format).unwrap()).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/checks/check_lora_formats.py");
    let transformer = fixture(MODEL).join("transformer");
    let output = Command::new(crate::needs::python())
        .arg(script)
        .arg("wan")
        .arg(transformer)
        .args(&files)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.matches("2 adapters, 2 biases").count(), 3, "{said}");
}

/// A layer of 3 by 2 without a bias, and what is to be added to one.
fn without_bias(folder: &Path) -> AdapterFile {
    write(
        &folder.join("model.safetensors"),
        &Tensors::from([("x.weight".to_string(), random(&mut Rng::new(5), &[3, 2]))]),
    );
    AdapterFile {
        path: "style.safetensors".into(),
        strength: 1.0,
        layers: BTreeMap::new(),
        deltas: Deltas::from([("x.bias".to_string(), Tensor::ones(3, DType::F32, &Device::Cpu).unwrap())]),
    }
}

#[test]
fn a_bias_for_a_layer_without_one_is_refused_by_name_merged_and_sampled() {
    let folder = tempfile::tempdir().unwrap();
    let file = without_bias(folder.path());
    let message = Folder::open(folder.path())
        .unwrap()
        .check(&[file])
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "style.safetensors: the difference of x.bias is of a parameter that this model does not have"
    );
    let adapters = Arc::new(Adapters::new(vec![without_bias(folder.path())], &Device::Cpu));
    let load = Load::new(DType::F32, &Device::Cpu).with_adapters(adapters.clone());
    let weights = Weights::read(&folder.path().into(), &load).unwrap();
    linear_no_bias(2, 3, weights.pp("x")).unwrap();
    let message = adapters.finish().unwrap_err().to_string();
    assert!(
        message.contains("the difference of x.bias is of a parameter"),
        "{message}"
    );
}

#[test]
fn differences_of_another_shape_are_refused_by_name_merged_and_sampled() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("i2v.safetensors");
    let delta = Tensor::ones((28, 12, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
    write(
        &path,
        &Tensors::from([("diffusion_model.patch_embedding.diff".to_string(), delta)]),
    );
    let transformer = fixture(MODEL).join("transformer");
    let apply = || read(&path).apply(&path, 1.0).unwrap();
    let merged = Folder::open(&transformer).unwrap().check(&[apply()]).unwrap_err();
    let adapters = Arc::new(Adapters::new(vec![apply()], &Device::Cpu));
    let sampled = Dit::load(
        &transformer,
        &Load::new(DType::F32, &Device::Cpu).with_adapters(adapters),
    );
    let sampled = sampled.map(drop).unwrap_err();
    for message in [format!("{merged:#}"), format!("{sampled:#}")] {
        let expected =
            "the difference of patch_embedding.weight is [28, 12, 1, 2, 2], but the parameter is [28, 4, 1, 2, 2]";
        assert!(message.contains(expected), "{message}");
    }
    // A matrix is no kernel, although it has as many numbers.
    let pair = |end: &str, shape: &[usize]| {
        let name = format!("diffusion_model.patch_embedding.{end}.weight");
        (name, Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap())
    };
    write(
        &path,
        &Tensors::from([pair("lora_A", &[4, 16]), pair("lora_B", &[28, 4])]),
    );
    let merged = Folder::open(&transformer)
        .unwrap()
        .check(&[apply()])
        .unwrap_err()
        .to_string();
    assert!(
        merged.contains("makes 28 of [16], but the layer's weight is [28, 4, 1, 2, 2]"),
        "{merged}"
    );
}

#[test]
fn conversion_keeps_differences_bit_for_bit() {
    let made = distilled(1);
    let bytes = safetensors::serialize(&made.file, None).unwrap();
    let first = file::from_bytes(&bytes, None, &registry::names()).unwrap();
    assert_eq!(first.format, Format::ComfyUi);
    assert_eq!(
        first.deltas.len(),
        made.file.keys().filter(|name| name.contains(".diff")).count()
    );
    for format in [Format::Kohya, Format::ComfyUi] {
        let again = file::from_bytes(&first.write(format).unwrap(), None, &registry::names()).unwrap();
        again.check().unwrap();
        assert_eq!(again.deltas.len(), first.deltas.len());
        for (name, delta) in &first.deltas {
            let (ours, theirs) = (&again.deltas[name], delta);
            assert_eq!(
                (ours.dtype(), values(ours)),
                (theirs.dtype(), values(theirs)),
                "{format:?} {name}"
            );
        }
    }
    let resized = resize(&first.layers, 2).unwrap();
    let cut = ParsedAdapter {
        layers: resized.layers,
        ..first
    };
    let again = file::from_bytes(&cut.write(cut.format).unwrap(), None, &registry::names()).unwrap();
    assert_eq!(again.deltas.len(), cut.deltas.len());
}

#[test]
fn what_diffusers_has_no_place_for_is_named_and_zeros_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("distilled.safetensors");
    let convert = |made: &Distilled| {
        write(&path, &made.file);
        read(&path).write(Format::Diffusers)
    };
    let message = convert(&distilled(1)).unwrap_err().to_string();
    assert!(
        message.contains("blocks.0.attn1.norm_k.weight is added to as a whole"),
        "{message}"
    );
    assert!(message.contains("vtrain lora merge"), "{message}");
    // CausVid's norms do not differ: such a file loses nothing in diffusers.
    let mut causvid = distilled(1);
    causvid.file.retain(|name, tensor| {
        if name.contains("norm") {
            *tensor = tensor.zeros_like().unwrap();
        }
        let in_blocks = name.contains(".blocks.");
        in_blocks && !name.ends_with("q.diff") && !name.contains("diff_m") && !name.contains("modulation")
    });
    let bytes = convert(&causvid).unwrap();
    let again = file::from_bytes(&bytes, None, &registry::names()).unwrap();
    again.check().unwrap();
    assert_eq!(again.format, Format::Diffusers);
    assert_eq!((again.layers.len(), again.deltas.len()), (20, 20));
    for (name, delta) in &again.deltas {
        assert!(error(delta, &causvid.added[name]) < 1e-6, "{name}");
    }
}

#[test]
fn training_does_not_start_from_what_does_not_learn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("distilled.safetensors");
    write(&path, &distilled(1).file);
    let config = Config {
        rank: 4,
        alpha: 4.0,
        target_modules: TargetModules::Suffixes(vec!["to_q".into()]),
        init: Some(path.into()),
        ..Config::default()
    };
    let trainable = Trainable::new(&config, &registry::names(), Rng::new(0), &Device::Cpu).unwrap();
    let message = format!("{:#}", trainable.finish().unwrap_err());
    assert!(
        message.contains("is added to as a whole") && message.contains("vtrain lora merge"),
        "{message}"
    );
}

#[test]
fn inspect_lists_differences_and_what_of_them_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("distilled.safetensors");
    write(&path, &distilled(1).file);
    let model = fixture(MODEL);
    let output = vtrain(&[
        "lora",
        "inspect",
        path.to_str().unwrap(),
        "--model",
        model.to_str().unwrap(),
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "adapters  20\n",
        "norm_q.weight (4): norm ",
        "to_q.bias (4)",
        "scale_shift_table (3)",
        "all of it fits",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let other = fixture("ltx_video/ltx-0.9.5");
    let output = vtrain(&[
        "lora",
        "inspect",
        "--json",
        path.to_str().unwrap(),
        "--model",
        other.to_str().unwrap(),
    ]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json["deltas"]["patch_embedding.weight"]["shape"],
        serde_json::json!([28, 4, 1, 2, 2])
    );
    let not_applied = json["not_applied"].as_array().unwrap();
    let named = |name: &str| not_applied.iter().any(|entry| entry["name"] == name);
    assert!(
        named("patch_embedding.weight") && named("blocks.0.attn1.to_q"),
        "{not_applied:?}"
    );
}

/// Numbers that a file's header calls so, as an alpha for a layer of rank 2.
fn with_alpha(dtype: &str, bytes: &[u8], shape: &[usize]) -> Vec<u8> {
    let header = serde_json::json!({
        "blocks.0.attn1.to_q.lora_A.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "blocks.0.attn1.to_q.lora_B.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16]},
        "blocks.0.attn1.to_q.alpha": {"dtype": dtype, "shape": shape, "data_offsets": [16, 16 + bytes.len()]},
    });
    let mut text = serde_json::to_vec(&header).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text, &[0; 16], bytes].concat()
}

#[test]
fn an_alpha_of_any_number_format_is_read() {
    let cases: [(&str, &[u8]); 10] = [
        ("I8", &5i8.to_le_bytes()),
        ("U8", &5u8.to_le_bytes()),
        ("I16", &5i16.to_le_bytes()),
        ("U16", &5u16.to_le_bytes()),
        ("I32", &5i32.to_le_bytes()),
        ("U32", &5u32.to_le_bytes()),
        ("I64", &5i64.to_le_bytes()),
        ("U64", &5u64.to_le_bytes()),
        ("F64", &5f64.to_le_bytes()),
        ("BF16", &[0xa0, 0x40]),
    ];
    for (dtype, bytes) in cases {
        for shape in [&[][..], &[1], &[1, 1]] {
            let read = file::from_bytes(&with_alpha(dtype, bytes, shape), None, &registry::names()).unwrap();
            read.check().unwrap();
            assert_eq!(read.layers["blocks.0.attn1.to_q"].alpha, 5.0, "{dtype} {shape:?}");
        }
    }
    let read = file::from_bytes(&with_alpha("BOOL", &[1], &[]), None, &registry::names()).unwrap();
    let message = read.check().unwrap_err().to_string();
    assert!(
        message.starts_with("blocks.0.attn1.to_q.alpha cannot be read"),
        "{message}"
    );
}

/// `W x + b + strength (scale B A x + d)`, where the layer is planted with two files.
#[test]
fn a_linear_layer_under_two_files_adds_both() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(7);
    let (w, b, d) = (
        random(&mut rng, &[3, 2]),
        random(&mut rng, &[3]),
        random(&mut rng, &[3]),
    );
    let base = Tensors::from([("x.weight".to_string(), w.clone()), ("x.bias".to_string(), b.clone())]);
    write(&folder.path().join("model.safetensors"), &base);
    let adapter = Adapter {
        a: random(&mut rng, &[2, 2]),
        b: random(&mut rng, &[3, 2]),
        alpha: 6.0,
        use_rslora: false,
    };
    let file = |strength, layers, deltas| AdapterFile {
        path: "style.safetensors".into(),
        strength,
        layers,
        deltas,
    };
    let adapters = Arc::new(Adapters::new(
        vec![
            file(0.5, BTreeMap::from([("x".to_string(), adapter.clone())]), Deltas::new()),
            file(2.0, BTreeMap::new(), Deltas::from([("x.bias".to_string(), d.clone())])),
        ],
        &Device::Cpu,
    ));
    let load = Load::new(DType::F32, &Device::Cpu).with_adapters(adapters.clone());
    let weights = Weights::read(&folder.path().into(), &load).unwrap();
    let layer = linear(2, 3, weights.pp("x")).unwrap();
    adapters.finish().unwrap();
    let x = random(&mut rng, &[4, 2]);
    let product = wide(&adapter.b).matmul(&wide(&adapter.a)).unwrap();
    let weight = (wide(&w) + (product * 1.5).unwrap()).unwrap();
    let bias = (wide(&b) + (wide(&d) * 2.0).unwrap()).unwrap();
    let expected = wide(&x)
        .matmul(&weight.t().unwrap())
        .unwrap()
        .broadcast_add(&bias)
        .unwrap();
    assert!(error(&layer.forward(&x).unwrap(), &expected) < 1e-6);
}
