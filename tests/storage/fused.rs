//! Files with the makers' names of a model whose layers are rows of one there: dense, in fp8, and GGUF. What is read of a
//! layer are its rows, to the bit.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;
use vtrain::models::hunyuan_video::dit::Dit;
use vtrain::models::{registry, replace_transformer};
use vtrain::nn::gguf::{GgufTensor, GgufWriter, Value};
use vtrain::nn::lent::Matrix;
use vtrain::nn::storage::ggml::{self, GgmlType};
use vtrain::nn::{Load, WeightFolder, Weights};
use vtrain::ops::stored::{StoredMatrix, Weight};
use vtrain::rng::Rng;

use super::{bytes, fixture};
use crate::fuzz::copy;

const MODEL: &str = "hunyuan_video/hunyuan-t2v";
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

type Tensors = HashMap<String, Tensor>;

fn load() -> Load {
    Load::new(DType::F32, &Device::Cpu)
}

fn own() -> PathBuf {
    fixture("..").join(MODEL)
}

/// The tiny transformer as a checkpoint of diffusers, and an empty folder in it.
fn checkpoint() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&own(), folder.path());
    fs::write(
        folder.path().join("model_index.json"),
        r#"{"_class_name": "HunyuanVideoPipeline"}"#,
    )
    .unwrap();
    folder
}

fn tensors() -> Tensors {
    candle_core::safetensors::load(own().join("transformer").join(WEIGHTS), &Device::Cpu).unwrap()
}

/// Original layers, and those that are their rows.
const FUSED: [(&str, &str, &[&str]); 4] = [
    (
        "double_blocks.{}.img_attn_qkv",
        "transformer_blocks.{}.attn.",
        &["to_q", "to_k", "to_v"],
    ),
    (
        "double_blocks.{}.txt_attn_qkv",
        "transformer_blocks.{}.attn.",
        &["add_q_proj", "add_k_proj", "add_v_proj"],
    ),
    (
        "single_blocks.{}.linear1",
        "single_transformer_blocks.{}.",
        &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    ),
    (
        "txt_in.individual_token_refiner.blocks.{}.self_attn_qkv",
        "context_embedder.token_refiner.refiner_blocks.{}.attn.",
        &["to_q", "to_k", "to_v"],
    ),
];

/// The makers' tensors of the same weights.
fn original() -> Tensors {
    let names = registry::names()
        .into_iter()
        .find(|names| names.family == "hunyuan_video");
    let (mut rest, mut file) = (tensors(), Tensors::new());
    for (fused, stem, parts) in FUSED {
        for block in 0..3 {
            for end in ["weight", "bias"] {
                let at = |pattern: &str| pattern.replace("{}", &block.to_string());
                let parts = parts
                    .iter()
                    .filter_map(|part| rest.remove(&format!("{}{part}.{end}", at(stem))));
                let parts: Vec<Tensor> = parts.collect();
                if !parts.is_empty() {
                    file.insert(format!("{}.{end}", at(fused)), Tensor::cat(&parts, 0).unwrap());
                }
            }
        }
    }
    for end in ["weight", "bias"] {
        let [scale, shift] = <[Tensor; 2]>::try_from(
            rest.remove(&format!("norm_out.linear.{end}"))
                .unwrap()
                .chunk(2, 0)
                .unwrap(),
        )
        .unwrap();
        file.insert(
            format!("final_layer.adaLN_modulation.1.{end}"),
            Tensor::cat(&[shift, scale], 0).unwrap(),
        );
    }
    file.extend(
        rest.into_iter()
            .map(|(name, tensor)| (names.unwrap().original_tensor(&name).unwrap(), tensor)),
    );
    file
}

/// The checkpoint with these tensors as its transformer.
fn placed(checkpoint: &TempDir, file: &Tensors) -> WeightFolder {
    let path = checkpoint.path().join("single.safetensors");
    candle_core::safetensors::save(file, &path).unwrap();
    replace_transformer(checkpoint.path().into(), &path)
        .unwrap()
        .part("transformer")
}

#[test]
fn a_single_file_with_fused_layers_is_read_by_rows_bit_for_bit() {
    let checkpoint = checkpoint();
    let comfyui = |name: &str| {
        // As ComfyUI's own modules are called.
        let name = name
            .replace("_attn_qkv", "_attn.qkv")
            .replace("_attn_proj", "_attn.proj");
        let name = name
            .replace("mlp.fc1", "mlp.0")
            .replace("mlp.fc2", "mlp.2")
            .replace("_mod.linear", "_mod.lin");
        let name = name
            .replace("_attn_q_norm.weight", "_attn.norm.query_norm.scale")
            .replace("time_in.mlp.0", "time_in.in_layer");
        format!(
            "model.model.{}",
            name.replace(".k_norm.weight", ".norm.key_norm.scale")
                .replace("modulation.linear", "modulation.lin")
        )
    };
    let plain: fn(&str) -> String = |name| name.into();
    for name in [plain, |name: &str| format!("model.diffusion_model.{name}"), comfyui] {
        let file: Tensors = original()
            .into_iter()
            .map(|(own, tensor)| (name(&own), tensor))
            .collect();
        let folder = placed(&checkpoint, &file);
        Dit::load(&folder, &Load::headers(DType::F32, &Device::Cpu))
            .map(drop)
            .unwrap();
        // Nothing is missing or left over.
        Dit::load(&folder, &load()).map(drop).unwrap();
        let weights = Weights::read(&folder, &load()).unwrap();
        let mut sizes = 0;
        for (name, tensor) in tensors() {
            let read = weights.get(tensor.dims(), &name).unwrap();
            assert_eq!(bytes(&read), bytes(&tensor), "{name}");
            sizes += tensor.elem_count() as u64 * 4;
        }
        let needed = weights.needed_bytes(&[]);
        assert_eq!(needed.whole + needed.lent, sizes);
    }
}

fn stored(matrix: Matrix) -> std::sync::Arc<dyn StoredMatrix> {
    match matrix {
        Matrix::Own(Weight::Stored(stored)) => stored,
        other => panic!("{other:?} is dense"),
    }
}

/// fp8 without scales, with one for all, and with one a row, which are cut with the rows.
#[test]
fn matrices_in_fp8_are_cut_where_they_lie() {
    let checkpoint = checkpoint();
    for scales in [None, Some(false), Some(true)] {
        let mut file = Tensors::new();
        let mut numbers = Tensors::new();
        for (name, tensor) in original() {
            if tensor.rank() != 2 {
                file.insert(name, tensor);
                continue;
            }
            let rows = tensor.dims()[0];
            let scale = match scales {
                None => None,
                Some(false) => Some(Tensor::new(&[[0.25f32]], &Device::Cpu).unwrap()),
                Some(true) => {
                    let scales: Vec<f32> = (0..rows).map(|row| 0.25 + row as f32 / 64.0).collect();
                    Some(Tensor::from_vec(scales, (rows, 1), &Device::Cpu).unwrap())
                }
            };
            let codes = match &scale {
                None => tensor.to_dtype(DType::F8E4M3).unwrap(),
                Some(scale) => tensor.broadcast_div(scale).unwrap().to_dtype(DType::F8E4M3).unwrap(),
            };
            let dense = codes.to_dtype(DType::F32).unwrap();
            let dense = scale
                .as_ref()
                .map_or(Ok(dense.clone()), |scale| dense.broadcast_mul(scale))
                .unwrap();
            let layer = name.strip_suffix(".weight").unwrap().to_string();
            if let Some(scale) = scale {
                let scale = if scales == Some(false) {
                    scale.reshape(()).unwrap()
                } else {
                    scale
                };
                file.insert(format!("{layer}.scale_weight"), scale);
            }
            numbers.insert(layer, dense);
            file.insert(name, codes);
        }
        let folder = placed(&checkpoint, &file);
        Dit::load(&folder, &load()).map(drop).unwrap();
        let weights = Weights::read(&folder, &load()).unwrap();
        let mut checked = 0;
        for (fused, stem, parts) in FUSED {
            let at = |pattern: &str| pattern.replace("{}", "1");
            let mut start = 0;
            for part in parts {
                let layer = format!("{}{part}", at(stem));
                let shape = tensors()[&format!("{layer}.weight")].dims2().unwrap();
                let matrix = stored(weights.pp(&layer).matrix(shape, "weight").unwrap());
                let expected = numbers[&at(fused)].narrow(0, start, shape.0).unwrap();
                assert_eq!(
                    bytes(&matrix.rows(0..shape.0, DType::F32).unwrap()),
                    bytes(&expected),
                    "{layer}"
                );
                assert!(
                    matrix.bytes() < shape.0 * shape.1 + 5 * shape.0 + 2048,
                    "{layer}: {}",
                    matrix.bytes()
                );
                start += shape.0;
                checked += 1;
            }
        }
        assert_eq!(checked, 13);
        // The halves of the last modulation are no neighbours in the model's order.
        let whole = &numbers["final_layer.adaLN_modulation.1"];
        let (outputs, inputs) = whole.dims2().unwrap();
        let half = outputs / 2;
        let expected = Tensor::cat(
            &[whole.narrow(0, half, half).unwrap(), whole.narrow(0, 0, half).unwrap()],
            0,
        )
        .unwrap();
        let matrix = stored(
            weights
                .pp("norm_out.linear")
                .matrix((outputs, inputs), "weight")
                .unwrap(),
        );
        for rows in [0..outputs, half - 3..half + 2, 1..4] {
            let expected = expected.narrow(0, rows.start, rows.len()).unwrap();
            assert_eq!(
                bytes(&matrix.rows(rows.clone(), DType::F32).unwrap()),
                bytes(&expected),
                "{rows:?}"
            );
        }
        assert!(matrix.rows(0..outputs + 1, DType::F32).is_err());
    }
}

/// The checkpoint with these tensors in a GGUF file as its transformer; matrices are in `kind`.
fn gguf(checkpoint: &TempDir, file: &Tensors, kind: GgmlType) -> WeightFolder {
    let path = checkpoint.path().join("model.gguf");
    let kind_of = |tensor: &Tensor| if tensor.rank() == 2 { kind } else { GgmlType::F32 };
    let described = file.iter().map(|(name, tensor)| GgufTensor {
        name: name.clone(),
        kind: kind_of(tensor),
        shape: tensor.dims().to_vec(),
    });
    let architecture = [("general.architecture", Value::Text("hyvid".into()))];
    let mut writer = GgufWriter::create(&path, &architecture, described.collect()).unwrap();
    for (name, tensor) in file {
        let rows = tensor.flatten_from(1.min(tensor.rank() - 1)).unwrap();
        let rows = if rows.rank() == 1 {
            rows.unsqueeze(0).unwrap()
        } else {
            rows
        };
        let stored = ggml::quantize(&rows, kind_of(tensor), &Device::Cpu).unwrap();
        writer.write(name, stored.into_format().bytes.to_vec()).unwrap();
    }
    writer.finish().unwrap();
    replace_transformer(checkpoint.path().into(), &path)
        .unwrap()
        .part("transformer")
}

#[test]
fn a_gguf_file_with_fused_layers_is_read_by_rows() {
    let checkpoint = checkpoint();
    let folder = gguf(&checkpoint, &original(), GgmlType::F16);
    Dit::load(&folder, &Load::headers(DType::F32, &Device::Cpu))
        .map(drop)
        .unwrap();
    Dit::load(&folder, &load()).map(drop).unwrap();
    let weights = Weights::read(&folder, &load()).unwrap();
    for (name, tensor) in tensors() {
        let rounded = match tensor.rank() {
            2 => tensor.to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap(),
            _ => tensor,
        };
        assert_eq!(
            bytes(&weights.get(rounded.dims(), &name).unwrap()),
            bytes(&rounded),
            "{name}"
        );
    }
    // Blocks of a row are never cut, and are not decoded either.
    let mut rng = Rng::new(2);
    let mut random = |rows: usize| Tensor::from_vec(rng.randn(rows * 256), (rows, 256), &Device::Cpu).unwrap();
    let file = Tensors::from([
        ("double_blocks.0.txt_attn_qkv.weight".to_string(), random(3 * 256)),
        ("single_blocks.2.linear1.weight".to_string(), random(3 * 256 + 64)),
        ("final_layer.adaLN_modulation.1.weight".to_string(), random(2 * 32)),
    ]);
    for kind in [GgmlType::Q8_0, GgmlType::Q4K] {
        let weights = Weights::read(&gguf(&checkpoint, &file, kind), &load()).unwrap();
        for (fused, layer, ranges) in [
            (
                "double_blocks.0.txt_attn_qkv",
                "transformer_blocks.0.attn.add_k_proj",
                &[(256, 256)][..],
            ),
            (
                "single_blocks.2.linear1",
                "single_transformer_blocks.2.attn.to_v",
                &[(512, 256)],
            ),
            (
                "single_blocks.2.linear1",
                "single_transformer_blocks.2.proj_mlp",
                &[(768, 64)],
            ),
            (
                "final_layer.adaLN_modulation.1",
                "norm_out.linear",
                &[(32, 32), (0, 32)],
            ),
        ] {
            let whole = ggml::quantize(&file[&format!("{fused}.weight")], kind, &Device::Cpu).unwrap();
            let whole = whole.rows(0..whole.shape().0, DType::F32).unwrap();
            let expected: Vec<Tensor> = ranges
                .iter()
                .map(|(start, count)| whole.narrow(0, *start, *count).unwrap())
                .collect();
            let expected = Tensor::cat(&expected, 0).unwrap();
            let rows = expected.dims()[0];
            let matrix = stored(weights.pp(layer).matrix((rows, 256), "weight").unwrap());
            assert_eq!(
                bytes(&matrix.rows(0..rows, DType::F32).unwrap()),
                bytes(&expected),
                "{layer}"
            );
            assert_eq!(Some(matrix.bytes()), kind.bytes(rows * 256), "{layer}");
        }
    }
}

#[test]
fn no_gguf_file_is_written_whose_matrices_are_several_here() {
    let checkpoint = checkpoint();
    let path = checkpoint.path().join("out.gguf");
    let output = Command::new(env!("CARGO_BIN_EXE_vtrain"))
        .args(["quantize", "--to", "q8_0"])
        .args([checkpoint.path(), &path])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let wanted = "GGUF files of HunyuanVideo have matrices that are several here";
    assert!(!output.status.success() && said.contains(wanted), "{said}");
    assert!(!path.exists());
}

#[test]
fn fused_matrices_that_cannot_be_divided_are_told_by_their_names() {
    let checkpoint = checkpoint();
    type Change<'a> = &'a dyn Fn(&mut Tensors);
    let ones = |shape: &[usize], dtype| {
        Tensor::ones(shape, DType::F32, &Device::Cpu)
            .unwrap()
            .to_dtype(dtype)
            .unwrap()
    };
    let qkv = "double_blocks.1.img_attn_qkv.weight";
    let cases: [(Change, &str); 5] = [
        (
            &|file| _ = file.insert(qkv.into(), ones(&[73, 24], DType::F32)),
            "the matrix of double_blocks.1.img_attn_qkv [73, 24] cannot be divided into the layers that it is here",
        ),
        (
            &|file| {
                file.insert("single_blocks.0.linear1.weight".into(), ones(&[60, 24], DType::F32));
                file.insert("single_blocks.0.linear1.bias".into(), ones(&[60], DType::F32));
            },
            "the matrix of single_blocks.0.linear1 [60, 24] cannot be divided",
        ),
        (
            &|file| _ = file.remove(qkv),
            "double_blocks.1.img_attn_qkv.bias is of a layer that is several here",
        ),
        (
            &|file| _ = file.insert("double_blocks.1.img_attn_qkv.bias".into(), ones(&[71], DType::F32)),
            "double_blocks.1.img_attn_qkv.bias [71] is in a form whose rows cannot be told apart",
        ),
        (
            &|file| _ = file.insert(format!("{qkv}.absmax"), ones(&[27], DType::F32)),
            "double_blocks.1.img_attn_qkv.weight.absmax",
        ),
    ];
    for (change, wanted) in cases {
        let mut file = original();
        change(&mut file);
        let said = format!(
            "{:#}",
            Dit::load(placed(&checkpoint, &file), &load()).map(drop).unwrap_err()
        );
        assert!(
            said.contains(wanted) && said.contains("single.safetensors"),
            "{wanted}: {said}"
        );
    }
    // A matrix of another size than the model's.
    let mut file = original();
    file.insert(qkv.into(), ones(&[75, 24], DType::F32));
    file.insert("double_blocks.1.img_attn_qkv.bias".into(), ones(&[75], DType::F32));
    let said = format!(
        "{:#}",
        Dit::load(placed(&checkpoint, &file), &load()).map(drop).unwrap_err()
    );
    let wanted = "transformer_blocks.1.attn.to_q.weight (double_blocks.1.img_attn_qkv.weight in the file) should be [24, 24] by config.json, but is [25, 24]";
    assert!(said.contains(wanted), "{said}");
}
