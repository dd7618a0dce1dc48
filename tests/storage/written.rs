//! What `vtrain quantize` writes: scripts/fixtures/make_written.py records what bitsandbytes, torchao and diffusers make of the
//! same transformer.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use vtrain::models::denoiser::Denoiser;
use vtrain::models::few_bits::form_of;
use vtrain::models::wan::dit::Dit as Wan;
use vtrain::models::{self, FamilyName};
use vtrain::nn::gguf::{self, GgufFile};
use vtrain::nn::load::PartQuantization;
use vtrain::nn::safetensors_writer::SafetensorsWriter;
use vtrain::nn::storage::ggml::{self, GgmlType};
use vtrain::nn::storage::layout::TensorSpec;
use vtrain::nn::storage::quantize::Quantization;
use vtrain::nn::{Load, Weights};
use vtrain::ops::stored::StoredMatrix;
use vtrain::rng::Rng;

use super::models::{answers, input, relative};
use super::{bytes, fixture};
use crate::needs::python;

pub const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// Forms of folders: as on the command line, and as the run file has them.
const FOLDERS: [(&str, Option<&str>); 7] = [
    ("nf4", Some("nf4")),
    ("nf4 --no-double-quant", None),
    ("fp4", Some("fp4")),
    ("bnb-int8", None),
    ("int8", Some("int8")),
    ("fp8-scaled", Some("fp8-scaled")),
    ("fp8", None),
];

pub fn checkpoint() -> PathBuf {
    fixture("../wan/wan-2.1-t2v")
}

pub fn vtrain<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain")).args(args).output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `vtrain quantize --to FORM FROM TO`; the form may have options behind it. Returns what it prints.
pub fn quantize(form: &str, from: &Path, to: &Path) -> String {
    let mut args = vec!["quantize", "--to"];
    args.extend(form.split(' '));
    args.extend([from.to_str().unwrap(), to.to_str().unwrap()]);
    let output = vtrain(&args);
    assert!(output.status.success(), "{form}: {}", stderr(&output));
    String::from_utf8(output.stdout.clone()).unwrap() + &stderr(&output)
}

fn digest(data: &[u8]) -> String {
    let hash = Sha256::digest(data);
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn f32_load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn predict(folder: &Path, load: &Load) -> Tensor {
    let answers = answers();
    Wan::load(folder, load).unwrap().forward(&input(&answers)).unwrap()
}

#[test]
fn folders_are_what_the_programs_themselves_write() {
    let recorded: Value = serde_json::from_slice(&fs::read(fixture("written.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (i, (form, _)) in FOLDERS.iter().enumerate() {
        let recorded = &recorded[form];
        let to = folder.path().join(i.to_string());
        quantize(form, &checkpoint().join("transformer"), &to);
        let file = fs::read(to.join(WEIGHTS)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&file).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let tensors: BTreeMap<String, _> = file.tensors().into_iter().collect();
        let lines: String = tensors
            .iter()
            .map(|(name, view)| match name.contains("quant_state") {
                true => format!("{name} {:?} text\n", view.dtype()),
                false => format!("{name} {:?} {:?}\n", view.dtype(), view.shape()),
            })
            .collect();
        assert_eq!(digest(lines.as_bytes()), recorded["names"], "{form}:\n{lines}");
        for (name, hash) in recorded["tensors"].as_object().unwrap() {
            // The mean of magnitudes is a sum in another order there, and so their last bits may differ.
            if *form != "nf4 --no-double-quant" && (name.ends_with("absmax")) {
                continue;
            }
            assert_eq!(digest(tensors[name].data()), *hash, "{form}: {name}");
        }
        for (name, text) in recorded["texts"].as_object().unwrap() {
            let (ours, theirs) = (
                std::str::from_utf8(tensors[name].data()).unwrap(),
                text.as_str().unwrap(),
            );
            let (start, ours_offset) = ours.split_once("\"nested_offset\": ").unwrap_or((ours, ""));
            let (theirs_start, offset) = theirs.split_once("\"nested_offset\": ").unwrap_or((theirs, ""));
            assert_eq!(start, theirs_start);
            let number = |text: &str| text.trim_end_matches('}').parse::<f64>().unwrap_or(1.0);
            assert_eq!(ours_offset.is_empty(), offset.is_empty());
            assert!(
                (number(ours_offset) / number(offset) - 1.0).abs() < 1e-6,
                "{ours} {theirs}"
            );
        }
        let metadata = header.metadata().clone().unwrap();
        let json = |text: &String| serde_json::from_str::<Value>(text).unwrap();
        for (name, described) in recorded["metadata"].as_object().unwrap() {
            assert_eq!(json(&metadata[name]), *described, "{form}: {name}");
        }
        let listed = metadata.get("tensor_names").map_or(Value::Array(Vec::new()), json);
        let listed: Vec<&str> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect();
        assert_eq!(digest(listed.join("\n").as_bytes()), recorded["listed"], "{form}");
        let config: Value = serde_json::from_slice(&fs::read(to.join("config.json")).unwrap()).unwrap();
        let quantization = config.get("quantization_config").unwrap_or(&Value::Null);
        assert_eq!(*quantization, recorded["config"], "{form}");
        let name = form.split(' ').next();
        assert_eq!(form_of(&to).as_deref(), name.filter(|name| *name != "fp8"));
    }
}

/// All numbers of a folder in few bits, dense.
pub fn decode(from: &Path, to: &Path) {
    let shapes = candle_core::safetensors::load(checkpoint().join("transformer").join(WEIGHTS), &Device::Cpu).unwrap();
    let weights = Weights::read(&from.into(), &f32_load()).unwrap();
    let tensors: HashMap<String, Tensor> = shapes
        .iter()
        .map(|(name, tensor)| (name.clone(), weights.get(tensor.dims(), name).unwrap()))
        .collect();
    weights.finish(&[]).unwrap();
    fs::create_dir_all(to).unwrap();
    candle_core::safetensors::save(&tensors, to.join(WEIGHTS)).unwrap();
    fs::copy(checkpoint().join("transformer/config.json"), to.join("config.json")).unwrap();
}

#[test]
fn a_folder_that_was_written_predicts_what_the_same_form_does_on_the_fly() {
    let folder = tempfile::tempdir().unwrap();
    let dense = checkpoint().join("transformer");
    for (i, (form, on_the_fly)) in FOLDERS.iter().enumerate() {
        let (to, decoded) = (folder.path().join(format!("{i}")), folder.path().join(format!("{i}d")));
        quantize(form, &dense, &to);
        decode(&to, &decoded);
        let prediction = predict(&to, &f32_load());
        let off = relative(&prediction, &predict(&decoded, &f32_load()));
        assert!(off <= 1e-5, "{form}: {off:e}");
        let lost = relative(&prediction, &predict(&dense, &f32_load()));
        assert!(lost > 1e-4, "{form} stores nothing");
        if let Some(name) = on_the_fly {
            let load = f32_load().with_quantization(PartQuantization {
                transformer: Quantization::from_name(name),
                text_encoder: None,
            });
            assert_eq!(bytes(&prediction), bytes(&predict(&dense, &load)), "{form}");
        }
    }
}

#[test]
fn a_whole_checkpoint_becomes_one_with_its_text_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("small");
    let printed = quantize("nf4 --text-encoder int8 --dtype bf16", &checkpoint(), &to);
    for part in [
        "transformer\n",
        "text_encoder\n",
        "nf4                           24",
        "int8                          18",
        "total",
        "linear layers that stay dense: linear_1 (1), linear_2 (1)",
    ] {
        assert!(printed.contains(part), "{part} in\n{printed}");
    }
    let same = |name: &str| fs::read(checkpoint().join(name)).unwrap() == fs::read(to.join(name)).unwrap();
    for name in [
        "model_index.json",
        "vae/config.json",
        "tokenizer/spiece.model",
        &format!("vae/{WEIGHTS}"),
    ] {
        assert!(same(name), "{name}");
    }
    // What rounds to bf16 does so but for the modules that diffusers keeps in f32.
    let dtype = |name: &str| {
        let file = fs::read(to.join("transformer").join(WEIGHTS)).unwrap();
        format!(
            "{:?}",
            SafeTensors::deserialize(&file).unwrap().tensor(name).unwrap().dtype()
        )
    };
    assert_eq!(dtype("blocks.0.attn1.to_q.bias"), "BF16");
    assert_eq!(dtype("condition_embedder.time_embedder.linear_1.weight"), "F32");
    let family = models::open(&to, FamilyName::Auto).unwrap();
    family.denoiser(&f32_load()).unwrap();
    let embed = |family: &dyn models::Family| family.embed(&f32_load(), &[("a red ball", None)]).unwrap().hidden;
    let embedded = embed(&*family);
    // The same with the text encoder decoded.
    let (dense, part) = (checkpoint().join("text_encoder"), to.join("text_encoder"));
    let shapes = candle_core::safetensors::load(dense.join("model.safetensors"), &Device::Cpu).unwrap();
    let weights = Weights::read(&part.as_path().into(), &f32_load()).unwrap();
    let decoded: HashMap<&String, Tensor> = shapes
        .iter()
        .map(|(name, tensor)| (name, weights.get(tensor.dims(), name).unwrap()))
        .collect();
    candle_core::safetensors::save(&decoded, part.join("model.safetensors")).unwrap();
    fs::copy(dense.join("config.json"), part.join("config.json")).unwrap();
    let family = models::open(&to, FamilyName::Auto).unwrap();
    let off = relative(&embedded, &embed(&*family));
    assert!(off < 1e-5, "{off:e}");
    let plain = models::open(&checkpoint(), FamilyName::Auto).unwrap();
    assert!(relative(&embedded, &embed(&*plain)) > 1e-4);
}

#[cfg(unix)]
#[test]
fn weights_of_other_parts_are_links_and_configs_are_copies() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    for part in ["", "transformer", "vae"] {
        fs::create_dir_all(from.join(part)).unwrap();
        for entry in fs::read_dir(checkpoint().join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, from.join(part).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    fs::write(from.join("transformer/model.bin"), "a pickle").unwrap();
    fs::write(from.join("transformer/LICENSE"), "free").unwrap();
    quantize("fp8", &from, &to);
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let linked = |name: &str| inode(from.join(name)) == inode(to.join(name));
    assert!(linked(&format!("vae/{WEIGHTS}")));
    assert!(!linked("vae/config.json") && !linked(&format!("transformer/{WEIGHTS}")));
    assert!(to.join("transformer/LICENSE").exists() && !to.join("transformer/model.bin").exists());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn the_variant_that_is_chosen_is_stored_under_the_usual_name() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::copy(checkpoint().join("transformer/config.json"), from.join("config.json")).unwrap();
    let tensors = candle_core::safetensors::load(checkpoint().join("transformer").join(WEIGHTS), &Device::Cpu).unwrap();
    candle_core::safetensors::save(&tensors, from.join(WEIGHTS)).unwrap();
    let doubled: HashMap<&String, Tensor> = tensors.iter().map(|(name, x)| (name, (x * 2.0).unwrap())).collect();
    let variant = from.join("diffusion_pytorch_model.fp16.safetensors");
    candle_core::safetensors::save(&doubled, variant).unwrap();
    let scales = |options: &str| {
        let to = folder.path().join(format!("to{options}"));
        quantize(&format!("int8{options}"), &from, &to);
        assert_eq!(fs::read_dir(&to).unwrap().count(), 2); // the other variant is not there
        let file = fs::read(to.join(WEIGHTS)).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let scale = file.tensor("blocks.0.attn1.to_q._weight_scale").unwrap();
        f32::from_le_bytes(scale.data()[..4].try_into().unwrap())
    };
    assert_eq!(scales(" --variant fp16"), 2.0 * scales(""));
}

/// The tiny transformer with sides that are whole blocks, in a type.
fn widened(to: &Path, dtype: DType) -> PathBuf {
    let wide = |side: usize| match side {
        28 => 256,
        45 => 512,
        24 => 288,
        18 => 64,
        168 => 1536,
        other => other,
    };
    let dense = checkpoint().join("transformer");
    let tensors = candle_core::safetensors::load(dense.join(WEIGHTS), &Device::Cpu).unwrap();
    let mut rng = Rng::new(11);
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    let mut drawn = HashMap::new();
    for name in names {
        let shape: Vec<usize> = tensors[name].dims().iter().map(|side| wide(*side)).collect();
        let numbers = rng.randn(shape.iter().product()).into_iter().map(|x| 0.1 * x).collect();
        let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
        drawn.insert(name.clone(), tensor.to_dtype(dtype).unwrap());
    }
    let folder = to.join("wide");
    fs::create_dir_all(&folder).unwrap();
    candle_core::safetensors::save(&drawn, folder.join(WEIGHTS)).unwrap();
    let config = fs::read_to_string(dense.join("config.json")).unwrap();
    let config = config
        .replace("\"attention_head_dim\": 14", "\"attention_head_dim\": 128")
        .replace("\"ffn_dim\": 45", "\"ffn_dim\": 512")
        .replace("\"freq_dim\": 18", "\"freq_dim\": 64")
        .replace("\"text_dim\": 24", "\"text_dim\": 288");
    fs::write(folder.join("config.json"), config).unwrap();
    Wan::load(folder.as_path(), &Load::headers(DType::F32, &Device::Cpu)).unwrap();
    folder
}

/// Original name, name in diffusers, type.
const IN_GGUF: [(&str, &str, &str); 9] = [
    ("blocks.1.self_attn.q.weight", "blocks.1.attn1.to_q.weight", "stored"),
    ("blocks.0.cross_attn.v.weight", "blocks.0.attn2.to_v.weight", "stored"),
    ("blocks.0.ffn.2.weight", "blocks.0.ffn.net.2.weight", "stored"),
    ("blocks.0.ffn.2.bias", "blocks.0.ffn.net.2.bias", "f32"),
    ("blocks.0.norm3.weight", "blocks.0.norm2.weight", "f32"),
    ("blocks.0.modulation", "blocks.0.scale_shift_table", "f32"),
    ("patch_embedding.weight", "patch_embedding.weight", "f32"),
    (
        "text_embedding.0.weight",
        "condition_embedder.text_embedder.linear_1.weight",
        "half",
    ),
    ("head.head.weight", "proj_out.weight", "half"),
];

#[test]
fn a_gguf_file_has_original_names_and_types_by_size_and_place() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, half) in [(DType::F32, GgmlType::F16), (DType::BF16, GgmlType::BF16)] {
        let wide = widened(folder.path(), dtype);
        let dense = candle_core::safetensors::load(wide.join(WEIGHTS), &Device::Cpu).unwrap();
        for (name, kind, number) in [("q8_0", GgmlType::Q8_0, 7), ("q4_k", GgmlType::Q4K, 14)] {
            let to = folder.path().join(format!("{}-{name}.gguf", dtype.as_str()));
            quantize(name, &wide, &to);
            let file = GgufFile::open(&to).unwrap();
            let header = file.header();
            assert_eq!(header.metadata["general.architecture"], gguf::Value::Text("wan".into()));
            assert_eq!(
                header.metadata["general.quantization_version"],
                gguf::Value::Unsigned(2)
            );
            assert_eq!(header.metadata["general.file_type"], gguf::Value::Unsigned(number));
            assert_eq!(header.tensors.len(), dense.len());
            for (original, ours, form) in IN_GGUF {
                let entry = &header.tensors[original];
                let tensor = &dense[ours];
                let expected = match form {
                    "stored" => kind,
                    "half" => half,
                    _ => GgmlType::F32,
                };
                assert_eq!((entry.kind, &entry.shape[..]), (expected, tensor.dims()), "{original}");
                let found = file.tensor(original, tensor.dims(), DType::F32, &Device::Cpu).unwrap();
                let columns = *tensor.dims().last().unwrap();
                let matrix = tensor.reshape(((), columns)).unwrap();
                let stored = ggml::quantize(&matrix, expected, &Device::Cpu).unwrap();
                let stored = stored.rows(0..matrix.dims()[0], DType::F32).unwrap();
                assert_eq!(bytes(&found), bytes(&stored), "{original}");
            }
        }
    }
}

#[test]
fn matrices_of_few_numbers_are_f32_in_gguf() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("tiny.gguf");
    quantize("q8_0", &fixture("../wan/wan-2.1-t2v/transformer"), &to);
    let file = GgufFile::open(&to).unwrap();
    // 28 x 28 and 45 x 28, whose rows are no whole blocks.
    for (name, kind) in [
        ("blocks.0.self_attn.q.weight", GgmlType::F32),
        ("blocks.0.ffn.0.weight", GgmlType::F16),
    ] {
        assert_eq!(file.header().tensors[name].kind, kind, "{name}");
    }
}

#[test]
fn rows_that_are_no_whole_blocks_get_more_bits_in_gguf_and_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let wide = widened(folder.path(), DType::F32);
    // Rows of 288 are whole blocks of 32, not of 256.
    let to = folder.path().join("out.gguf");
    let before = fs::read(wide.join(WEIGHTS)).unwrap();
    let said = quantize("q4_k", &wide, &to);
    assert!(!said.contains("no whole blocks"), "{said}"); // those rows are of text_embedding, which stays in f16
    let mut tensors = candle_core::safetensors::load_buffer(&before, &Device::Cpu).unwrap();
    for name in ["blocks.0.ffn.net.2.weight", "blocks.1.ffn.net.2.weight"] {
        let narrow = tensors[name].narrow(1, 0, 288).unwrap().contiguous().unwrap();
        tensors.insert(name.into(), narrow);
    }
    candle_core::safetensors::save(&tensors, wide.join(WEIGHTS)).unwrap();
    fs::remove_file(&to).unwrap();
    let said = quantize("q4_k", &wide, &to);
    assert!(
        said.contains("2 matrices have rows that are no whole blocks of Q4_K, 256 numbers each"),
        "{said}"
    );
    let kind = GgufFile::open(&to).unwrap().header().tensors["blocks.0.ffn.2.weight"].kind;
    assert_eq!(kind, GgmlType::Q5_0);
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let shown = |path: &Path| path.to_str().unwrap().to_string();
    let (wan, cogvideox) = (shown(&checkpoint()), shown(&fixture("../cogvideox/cogvideox-2b")));
    let stored = at("stored");
    quantize("int8", &checkpoint().join("transformer"), &stored);
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/x"), "x").unwrap();
    fs::write(at("there.gguf"), "x").unwrap();
    let strange = at("strange");
    fs::create_dir(&strange).unwrap();
    fs::copy(
        checkpoint().join("transformer/config.json"),
        strange.join("config.json"),
    )
    .unwrap();
    let weight = Tensor::zeros((64, 64), DType::F32, &Device::Cpu).unwrap();
    let tensors = HashMap::from([
        ("blocks.0.attn1.to_q.weight", weight.clone()),
        ("strange.weight", weight),
    ]);
    candle_core::safetensors::save(&tensors, strange.join(WEIGHTS)).unwrap();
    let (new, new_gguf) = (shown(&at("new")), shown(&at("new.gguf")));
    let cases: [(&[&str], &str, i32, &[&str]); 12] = [
        (&["q5", &wan, &new], "", 2, &["there are fp8, fp8-scaled", "bnb-int8"]),
        (&["nf4", &wan, &shown(&at("full"))], "", 2, &["full: is not empty"]),
        (
            &["nf4", &wan, &format!("{wan}/small")],
            "",
            2,
            &["is inside of the checkpoint"],
        ),
        (
            &["nf4", &wan, &new_gguf],
            "",
            2,
            &["this form is not one of GGUF files"],
        ),
        (
            &["q8_0", &wan, &new],
            "--text-encoder nf4 --no-double-quant",
            2,
            &["is named .gguf", "holds the transformer alone"],
        ),
        (
            &["q8_0", &wan, &shown(&at("there.gguf"))],
            "",
            2,
            &["there.gguf: exists"],
        ),
        (
            &["int8", &wan, &new],
            "--text-encoder q8_0 --no-double-quant",
            2,
            &[
                "text encoders are not written as GGUF",
                "--no-double-quant: is for nf4 and fp4",
            ],
        ),
        (
            &["nf4", &format!("{wan}/transformer"), &new],
            "--text-encoder nf4",
            2,
            &["has no text_encoder/"],
        ),
        (
            &["q8_0", &cogvideox, &new_gguf],
            "",
            4,
            &["no program reads GGUF files of CogVideoX"],
        ),
        (
            &["nf4", &shown(&stored), &new],
            "",
            4,
            &["is in few bits already, such as blocks.0.attn1.to_k.weight"],
        ),
        (&["nf4", &shown(&at("full")), &new], "", 4, &["full/config.json"]),
        (
            &["q8_0", &shown(&strange), &new_gguf],
            "",
            4,
            &[
                "1 tensors cannot be in a GGUF file of Wan",
                "strange.weight has no original name",
            ],
        ),
    ];
    for (args, options, code, messages) in cases {
        let args: Vec<&str> = ["quantize", "--to"].into_iter().chain(args.iter().copied()).collect();
        let args: Vec<&str> = args
            .into_iter()
            .chain(options.split(' ').filter(|word| !word.is_empty()))
            .collect();
        let output = vtrain(&args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        for message in messages {
            assert!(said.contains(message), "{args:?}: {said}");
        }
        assert!(!at("new").exists() && !at("new.gguf").exists(), "{args:?}");
    }
}

#[test]
fn a_number_that_is_none_is_named_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::copy(checkpoint().join("transformer/config.json"), from.join("config.json")).unwrap();
    let mut tensors =
        candle_core::safetensors::load(checkpoint().join("transformer").join(WEIGHTS), &Device::Cpu).unwrap();
    let name = "blocks.1.attn2.to_k.weight";
    let spoiled = (&tensors[name] / 0.0).unwrap();
    tensors.insert(name.into(), spoiled);
    candle_core::safetensors::save(&tensors, from.join(WEIGHTS)).unwrap();
    for (form, to) in [("nf4", "out"), ("q8_0", "out.gguf")] {
        let to = folder.path().join(to);
        let output = vtrain(&["quantize", "--to", form, from.to_str().unwrap(), to.to_str().unwrap()]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains(name) && said.contains("inf"), "{said}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{form}");
    }
}

#[test]
fn tensors_of_a_written_file_begin_aligned_and_texts_are_as_long_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec::new(name, dtype, shape);
    let text = |name: &str| TensorSpec {
        text: true,
        ..spec(name, safetensors::Dtype::U8, &[30])
    };
    use safetensors::Dtype::{BF16, F32, U8};
    let specs = [
        spec("codes", U8, &[3]),
        text("b"),
        spec("half", BF16, &[1]),
        text("a"),
        spec("scales", F32, &[2]),
        spec("none", F32, &[0]),
    ];
    let mut writer = SafetensorsWriter::create(&path, &BTreeMap::new(), &specs).unwrap();
    let parts: [(&str, &[u8]); 6] = [
        ("a", b"four"),
        ("codes", &[1, 2, 3]),
        ("scales", &[9; 8]),
        ("half", &[7, 8]),
        ("none", &[]),
        ("b", b"a longer one"),
    ];
    assert!(writer.write("other", &[]).is_err() && writer.write("codes", &[1]).is_err());
    for (name, part) in parts {
        writer.write(name, part).unwrap();
    }
    writer.finish().unwrap();
    let file = fs::read(&path).unwrap();
    let (length, header) = SafeTensors::read_metadata(&file).unwrap();
    assert_eq!(length % 8, 0);
    let file = SafeTensors::deserialize(&file).unwrap();
    for (name, part) in parts {
        assert_eq!(file.tensor(name).unwrap().data(), part, "{name}");
        let info = header.info(name).unwrap();
        assert_eq!(info.data_offsets.0 % (info.dtype.bitsize() / 8), 0, "{name}");
    }
    let twice = SafetensorsWriter::create(&path, &BTreeMap::new(), &[specs[0].clone(), specs[0].clone()]);
    assert!(twice.err().unwrap().to_string().contains("codes would be there twice"));
    for left_out in ["a", "half"] {
        let mut writer = SafetensorsWriter::create(&path, &BTreeMap::new(), &specs).unwrap();
        for (name, part) in parts.iter().filter(|(name, _)| *name != left_out) {
            writer.write(name, part).unwrap();
        }
        let complaint = writer.finish().unwrap_err().to_string();
        assert!(
            complaint.contains(&format!("{left_out} was planned, but not written")),
            "{complaint}"
        );
    }
}

#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn the_programs_themselves_make_and_load_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut cases: Vec<Vec<String>> = Vec::new();
    let mut case = |kind: &str, paths: &[&Path]| {
        let paths = paths.iter().map(|path| path.to_str().unwrap().to_string());
        cases.push([kind.to_string()].into_iter().chain(paths).collect());
    };
    let dense = checkpoint().join("transformer");
    for (i, (form, _)) in FOLDERS.iter().enumerate() {
        let to = folder.path().join(i.to_string());
        quantize(form, &dense, &to);
        let mut answer = answers();
        answer.retain(|name, _| !name.ends_with(".out"));
        answer.insert("out".into(), predict(&to, &f32_load()));
        let path = folder.path().join(format!("answer-{i}.safetensors"));
        candle_core::safetensors::save(&answer, &path).unwrap();
        case("folder", &[&dense, &to, Path::new(form), &path]);
    }
    let whole = folder.path().join("whole");
    quantize("nf4 --text-encoder nf4", &checkpoint(), &whole);
    let parts = [checkpoint(), whole].map(|folder| folder.join("text_encoder"));
    case("text-encoder", &[&parts[0], &parts[1]]);
    let wide = widened(folder.path(), DType::BF16);
    for form in ["q8_0", "q5_1", "q4_k", "q6_k"] {
        let to = folder.path().join(format!("{form}.gguf"));
        quantize(form, &wide, &to);
        let file = GgufFile::open(&to).unwrap();
        let tensors = file.header().tensors.iter();
        let decoded: HashMap<String, Tensor> = tensors
            .map(|(name, entry)| {
                let tensor = file.tensor(name, &entry.shape, DType::F32, &Device::Cpu).unwrap();
                (name.clone(), tensor)
            })
            .collect();
        let path = folder.path().join(format!("{form}.safetensors"));
        candle_core::safetensors::save(&decoded, &path).unwrap();
        case("gguf", &[&to, &path, &wide]);
    }
    let path = folder.path().join("cases.json");
    fs::write(&path, serde_json::to_vec(&cases).unwrap()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/checks/check_quantized.py");
    let output = Command::new(python()).arg(script).arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", stderr(&output));
    println!("{said}");
}
