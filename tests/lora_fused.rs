//! Adapters of layers that are rows of one in the makers' checkpoint: what a file says of the whole matrix is what it says
//! of its rows. The expected matrices are worked out here in f64, from the tensors of the files.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use vtrain::lora::adapters::{Adapter, Deltas};
use vtrain::lora::bytes::Metadata;
use vtrain::lora::file::{self, ParsedAdapter};
use vtrain::lora::format::Format;
use vtrain::lora::names::Names;
use vtrain::models::FamilyName;
use vtrain::models::registry::{self, FAMILIES};
use vtrain::rng::Rng;

type Tensors = BTreeMap<String, Tensor>;

/// Width of the model.
const WIDTH: usize = 10;

/// Inner width of its feed-forward layers.
const INNER: usize = 22;

const DUAL: &str = "transformer_blocks.3.attn.";
const SINGLE: &str = "single_transformer_blocks.7.";
const REFINER: &str = "context_embedder.token_refiner.refiner_blocks.1.attn.";

fn names() -> &'static Names {
    let family = FAMILIES.iter().find(|spec| spec.name == FamilyName::HunyuanVideo);
    family.unwrap().names
}

fn random(rng: &mut Rng, shape: (usize, usize)) -> Tensor {
    Tensor::from_vec(rng.randn(shape.0 * shape.1), shape, &Device::Cpu).unwrap()
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

fn product(adapter: &Adapter) -> Tensor {
    (wide(&adapter.b).matmul(&wide(&adapter.a)).unwrap() * adapter.scale()).unwrap()
}

/// An adapter file: layer, outputs, rank and alpha of each.
fn made(layers: &[(&str, usize, usize, f64)]) -> ParsedAdapter {
    let mut rng = Rng::new(8);
    let layers = layers.iter().map(|(layer, outputs, rank, alpha)| {
        let adapter = Adapter {
            a: random(&mut rng, (*rank, WIDTH)),
            b: random(&mut rng, (*outputs, *rank)),
            alpha: *alpha,
            use_rslora: false,
        };
        (layer.to_string(), adapter)
    });
    ParsedAdapter {
        format: Format::Diffusers,
        families: vec![names()],
        layers: layers.collect(),
        deltas: Deltas::new(),
        alpha_is_a_guess: false,
        strange: Vec::new(),
        about: Metadata::new(),
    }
}

fn read(bytes: &[u8]) -> ParsedAdapter {
    let read = file::from_bytes(bytes, None, &registry::names()).unwrap();
    read.check().unwrap();
    read
}

fn tensors(bytes: &[u8]) -> Tensors {
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).unwrap();
    tensors.into_iter().collect()
}

fn bytes(tensors: &Tensors) -> Vec<u8> {
    safetensors::serialize(tensors, None).unwrap()
}

/// The scaled product under a name, by what ComfyUI and kohya's programs make of these tensors.
fn product_in(tensors: &Tensors, name: &str) -> Tensor {
    let ends = [
        ["lora_A.weight", "lora_B.weight"],
        ["lora.down.weight", "lora.up.weight"],
        ["lora_down.weight", "lora_up.weight"],
    ];
    let pairs = ends.iter().filter_map(|[a, b]| {
        let tensor = |end: &str| tensors.get(&format!("{name}.{end}"));
        Some((tensor(a)?, tensor(b)?))
    });
    let (a, b) = pairs
        .into_iter()
        .next()
        .unwrap_or_else(|| panic!("{name} is not there"));
    let alpha = tensors.get(&format!("{name}.alpha"));
    let scale = alpha.map_or(1.0, |alpha| values(alpha)[0] / a.dims()[0] as f64);
    (wide(b).matmul(&wide(a)).unwrap() * scale).unwrap()
}

fn zeros(rows: usize) -> Tensor {
    Tensor::zeros((rows, WIDTH), DType::F64, &Device::Cpu).unwrap()
}

/// Adapters with the same change as others; `exactly` the same numbers.
fn same(ours: &ParsedAdapter, theirs: &ParsedAdapter, exactly: bool) {
    let layers = |file: &ParsedAdapter| file.layers.keys().cloned().collect::<Vec<_>>();
    assert_eq!(layers(ours), layers(theirs));
    for (layer, adapter) in &ours.layers {
        let other = &theirs.layers[layer];
        assert_eq!(adapter.rank(), other.rank(), "{layer}");
        let off = error(&product(adapter), &product(other));
        assert!(off < 1e-6, "{layer}: {off:e}");
        if exactly {
            assert_eq!(values(&adapter.a), values(&other.a), "{layer}");
            assert_eq!(values(&adapter.b), values(&other.b), "{layer}");
            assert_eq!(adapter.alpha, other.alpha, "{layer}");
        }
    }
}

/// All parts of every fused layer, with ranks and scales of their own.
fn uneven() -> ParsedAdapter {
    let named = |stem: &str, part: &str| format!("{stem}{part}");
    let mut layers = Vec::new();
    for (stem, parts) in [
        (DUAL, ["to_q", "to_k", "to_v"]),
        (DUAL, ["add_q_proj", "add_k_proj", "add_v_proj"]),
        (REFINER, ["to_q", "to_k", "to_v"]),
        (SINGLE, ["attn.to_q", "attn.to_k", "attn.to_v"]),
    ] {
        for (part, (rank, alpha)) in parts.into_iter().zip([(3, 2.0), (1, 5.0), (2, 2.5)]) {
            layers.push((named(stem, part), WIDTH, rank, alpha));
        }
    }
    layers.push((named(SINGLE, "proj_mlp"), INNER, 5, 1.0));
    layers.push(("norm_out.linear".to_string(), 2 * WIDTH, 1, 3.0));
    layers.push(("time_text_embed.timestep_embedder.linear_1".to_string(), WIDTH, 2, 3.0));
    let layers: Vec<_> = layers
        .iter()
        .map(|(name, outputs, rank, alpha)| (name.as_str(), *outputs, *rank, *alpha))
        .collect();
    made(&layers)
}

/// The original matrix's change: the parts' own, one below the other.
fn stacked(file: &ParsedAdapter, stem: &str, parts: &[&str]) -> Tensor {
    let parts: Vec<Tensor> = parts
        .iter()
        .map(|part| product(&file.layers[&format!("{stem}{part}")]))
        .collect();
    Tensor::cat(&parts, 0).unwrap()
}

#[test]
fn a_fused_layer_gets_the_changes_of_all_its_parts_in_every_format() {
    let file = uneven();
    let qkv = ["to_q", "to_k", "to_v"];
    let swapped = {
        let whole = product(&file.layers["norm_out.linear"]);
        let half = |at| whole.narrow(0, at, WIDTH).unwrap();
        Tensor::cat(&[half(WIDTH), half(0)], 0).unwrap()
    };
    let expected = [
        (
            "double_blocks.3.img_attn_qkv",
            "double_blocks.3.img_attn_qkv",
            stacked(&file, DUAL, &qkv),
        ),
        (
            "double_blocks.3.txt_attn_qkv",
            "double_blocks.3.txt_attn_qkv",
            stacked(&file, DUAL, &["add_q_proj", "add_k_proj", "add_v_proj"]),
        ),
        (
            "single_blocks.7.linear1",
            "single_blocks.7.linear1",
            stacked(&file, SINGLE, &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
        ),
        // As ComfyUI calls them.
        (
            "txt_in.individual_token_refiner.blocks.1.self_attn_qkv",
            "txt_in.individual_token_refiner.blocks.1.self_attn.qkv",
            stacked(&file, REFINER, &qkv),
        ),
        (
            "final_layer.adaLN_modulation.1",
            "final_layer.adaLN_modulation.1",
            swapped,
        ),
        (
            "time_in.mlp.0",
            "time_in.in_layer",
            product(&file.layers["time_text_embed.timestep_embedder.linear_1"]),
        ),
    ];
    for format in [Format::ComfyUi, Format::Kohya] {
        let written = file.write(format).unwrap();
        let there = tensors(&written);
        for (original, comfyui, change) in &expected {
            let name = match format {
                Format::Kohya => format!("lora_unet_{}", original.replace('.', "_")),
                _ => format!("diffusion_model.{comfyui}"),
            };
            let off = error(&product_in(&there, &name), change);
            assert!(off < 1e-6, "{name}: {off:e}");
        }
        // Read back, every part has its own rank again.
        same(&read(&written), &file, false);
        same(&read(&bytes(&there)), &file, false);
    }
}

/// diffusers stops at an alpha, and at a lora_A of the refiner's query, key and value in one.
#[test]
fn a_file_for_comfyui_has_nothing_that_diffusers_stops_at() {
    let there = tensors(&uneven().write(Format::ComfyUi).unwrap());
    assert!(there.contains_key("diffusion_model.double_blocks.3.img_attn_qkv.lora_A.weight"));
    for (name, tensor) in &there {
        assert!(!name.ends_with(".alpha"), "{name}");
        assert!(!name.contains("self_attn_qkv"), "{name}");
        // Nor warns of what it has no place for.
        let unknown = ["self_attn.qkv", "in_layer", "final_layer.adaLN"]
            .iter()
            .any(|part| name.contains(part));
        assert_eq!(unknown, name.contains(".lora."), "{name}");
        // It halves this one, whatever its name ends in.
        assert!(
            !name.contains("final_layer.adaLN") || tensor.dims().iter().all(|side| *side > 1),
            "{name}"
        );
    }
    for part in ["to_q", "to_k", "to_v"] {
        assert!(there.contains_key(&format!("diffusion_model.{REFINER}{part}.lora_A.weight")));
    }
}

#[test]
fn adapters_of_one_scale_come_back_bit_for_bit() {
    let q = format!("{DUAL}to_q");
    let v = format!("{DUAL}to_v");
    let mlp = format!("{SINGLE}proj_mlp");
    for alpha in [6.0, 2.2] {
        let file = made(&[(&q, WIDTH, 3, alpha), (&v, WIDTH, 3, alpha), (&mlp, INNER, 3, alpha)]);
        same(&read(&file.write(Format::Kohya).unwrap()), &file, true);
        // By other factors than powers of two B is multiplied in f32 there.
        same(&read(&file.write(Format::ComfyUi).unwrap()), &file, alpha == 6.0);
    }
}

#[test]
fn parts_without_an_adapter_are_rows_of_zeros() {
    let k = format!("{DUAL}to_k");
    let [q, v] = ["attn.to_q", "attn.to_v"].map(|part| format!("{SINGLE}{part}"));
    let file = made(&[(&k, WIDTH, 3, 3.0), (&q, WIDTH, 2, 2.0), (&v, WIDTH, 2, 2.0)]);
    let written = file.write(Format::Kohya).unwrap();
    let there = tensors(&written);
    let expected = Tensor::cat(&[zeros(WIDTH), product(&file.layers[&k]), zeros(WIDTH)], 0).unwrap();
    assert!(error(&product_in(&there, "lora_unet_double_blocks_3_img_attn_qkv"), &expected) < 1e-6);
    // No adapter tells of the last part, which has four times the inputs in all checkpoints.
    let [q, v] = [&q, &v].map(|layer| product(&file.layers[layer]));
    let expected = Tensor::cat(&[q, zeros(WIDTH), v, zeros(4 * WIDTH)], 0).unwrap();
    assert!(error(&product_in(&there, "lora_unet_single_blocks_7_linear1"), &expected) < 1e-6);
    assert_eq!(
        there["lora_unet_single_blocks_7_linear1.lora_down.weight"].dims(),
        [4, WIDTH]
    );
    same(&read(&written), &file, true);
    same(&read(&bytes(&there)), &file, true);
}

/// The last part of one block tells how many rows it has in the others.
#[test]
fn the_rows_of_a_part_without_an_adapter_are_those_that_it_has_in_other_blocks() {
    let q = format!("{SINGLE}attn.to_q");
    let file = made(&[
        (&q, WIDTH, 2, 2.0),
        ("single_transformer_blocks.0.proj_mlp", INNER, 2, 2.0),
    ]);
    let there = tensors(&file.write(Format::Kohya).unwrap());
    for block in [0, 7] {
        let b = &there[&format!("lora_unet_single_blocks_{block}_linear1.lora_up.weight")];
        assert_eq!(b.dims(), [3 * WIDTH + INNER, 2]);
    }
}

/// An adapter that was trained on the fused layer, as musubi-tuner does.
fn trained_fused(name: &str, outputs: usize, rank: usize, alpha: f32) -> Tensors {
    let mut rng = Rng::new(4);
    Tensors::from([
        (format!("{name}.lora_down.weight"), random(&mut rng, (rank, WIDTH))),
        (format!("{name}.lora_up.weight"), random(&mut rng, (outputs, rank))),
        (format!("{name}.alpha"), Tensor::new(alpha, &Device::Cpu).unwrap()),
    ])
}

#[test]
fn a_file_trained_on_fused_layers_is_read_by_rows() {
    for (name, stem, parts, outputs) in [
        (
            "lora_unet_double_blocks_3_img_attn_qkv",
            DUAL,
            &["to_q", "to_k", "to_v"][..],
            3 * WIDTH,
        ),
        // ComfyUI's name.
        (
            "diffusion_model.double_blocks.3.txt_attn.qkv",
            DUAL,
            &["add_q_proj", "add_k_proj", "add_v_proj"],
            3 * WIDTH,
        ),
        (
            "lora_unet_single_blocks_7_linear1",
            SINGLE,
            &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
            3 * WIDTH + INNER,
        ),
        (
            "transformer.txt_in.individual_token_refiner.blocks.1.self_attn_qkv",
            REFINER,
            &["to_q", "to_k", "to_v"],
            3 * WIDTH,
        ),
    ] {
        let there = trained_fused(name, outputs, 5, 3.0);
        let found = read(&bytes(&there));
        assert_eq!(found.layers.len(), parts.len(), "{name}");
        assert!(found.layers.values().all(|adapter| adapter.rank() == 5), "{name}");
        let off = error(&stacked(&found, stem, parts), &product_in(&there, name));
        assert!(off < 1e-6, "{name}: {off:e}");
        // And written for any program it is the same matrix again.
        for format in [Format::Diffusers, Format::ComfyUi, Format::Kohya] {
            let again = read(&found.write(format).unwrap());
            let off = error(&stacked(&again, stem, parts), &product_in(&there, name));
            assert!(off < 1e-6, "{name} {format:?}: {off:e}");
        }
    }
}

#[test]
fn a_modulation_whose_halves_are_swapped_comes_in_the_models_order() {
    let name = "lora_unet_final_layer_adaLN_modulation_1";
    let there = trained_fused(name, 2 * WIDTH, 3, 2.0);
    let found = product(&read(&bytes(&there)).layers["norm_out.linear"]);
    let theirs = product_in(&there, name);
    for (ours, at) in [(0, WIDTH), (WIDTH, 0)] {
        let half = |tensor: &Tensor, at| tensor.narrow(0, at, WIDTH).unwrap();
        assert!(error(&half(&found, ours), &half(&theirs, at)) < 1e-6);
    }
}

/// Adapters that have learned nothing yet: B is zero, and no rows tell of parts.
#[test]
fn adapters_at_their_start_keep_their_ranks() {
    let [q, k, v] = ["to_q", "to_k", "to_v"].map(|part| format!("{DUAL}{part}"));
    let mut file = made(&[(&q, WIDTH, 2, 2.0), (&k, WIDTH, 2, 2.0), (&v, WIDTH, 2, 2.0)]);
    for adapter in file.layers.values_mut() {
        adapter.b = adapter.b.zeros_like().unwrap();
    }
    for format in [Format::ComfyUi, Format::Kohya] {
        let written = file.write(format).unwrap();
        let found = read(&written);
        assert!(found.layers.values().all(|adapter| adapter.rank() == 2), "{format:?}");
        for (layer, adapter) in &found.layers {
            assert_eq!(values(&adapter.a), values(&file.layers[layer].a), "{format:?} {layer}");
        }
        // Where nothing tells of them, the parts share what there is.
        let bare = read(&bytes(&tensors(&written)));
        assert!(bare.layers.len() == 3 && bare.layers.values().all(|adapter| adapter.rank() == 6));
    }
}

#[test]
fn differences_of_fused_layers_are_divided_and_joined_as_well() {
    let mut rng = Rng::new(6);
    let mut there = trained_fused("diffusion_model.single_blocks.7.linear1", 3 * WIDTH + INNER, 2, 2.0);
    let bias = random(&mut rng, (1, 3 * WIDTH + INNER)).squeeze(0).unwrap();
    there.insert("diffusion_model.single_blocks.7.linear1.diff_b".into(), bias.clone());
    let weight = random(&mut rng, (3 * WIDTH, WIDTH));
    there.insert(
        "diffusion_model.double_blocks.3.img_attn_qkv.diff".into(),
        weight.clone(),
    );
    let found = read(&bytes(&there));
    let own = &found.deltas;
    let rows = |tensor: &Tensor, at: usize, count: usize| values(&tensor.narrow(0, at, count).unwrap());
    assert_eq!(values(&own[&format!("{DUAL}to_k.weight")]), rows(&weight, WIDTH, WIDTH));
    assert_eq!(
        values(&own[&format!("{SINGLE}attn.to_v.bias")]),
        rows(&bias, 2 * WIDTH, WIDTH)
    );
    assert_eq!(
        values(&own[&format!("{SINGLE}proj_mlp.bias")]),
        rows(&bias, 3 * WIDTH, INNER)
    );
    let again = tensors(&found.write(Format::ComfyUi).unwrap());
    for (name, tensor) in [
        ("single_blocks.7.linear1.diff_b", &bias),
        ("double_blocks.3.img_attn_qkv.diff", &weight),
    ] {
        assert_eq!(
            values(&again[&format!("diffusion_model.{name}")]),
            values(tensor),
            "{name}"
        );
    }
    // Without a matrix nothing tells where a bias's parts begin, if they are not equal.
    there.retain(|name, _| !name.contains("lora_") && !name.ends_with(".alpha"));
    let unclear = file::from_bytes(&bytes(&there), None, &registry::names()).unwrap();
    let message = unclear.check().unwrap_err().to_string();
    assert!(
        message.contains("single_blocks.7.linear1 has 52 outputs and an unknown number of inputs"),
        "{message}"
    );
}

#[test]
fn sizes_that_make_no_fused_layer_are_told() {
    let name = "lora_unet_double_blocks_3_img_attn_qkv";
    for (outputs, name, expected) in [
        (
            3 * WIDTH + 1,
            name,
            "double_blocks_3_img_attn_qkv has 31 outputs and 10 inputs, which cannot be divided",
        ),
        (
            3 * WIDTH,
            "lora_unet_single_blocks_7_linear1",
            "linear1 has 30 outputs and 10 inputs, which cannot",
        ),
        (
            2 * WIDTH + 1,
            "lora_unet_final_layer_adaLN_modulation_1",
            "has 21 outputs and 10 inputs, which cannot",
        ),
    ] {
        let read = file::from_bytes(&bytes(&trained_fused(name, outputs, 2, 2.0)), None, &registry::names()).unwrap();
        let message = read.check().unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let [q, k] = ["to_q", "to_k"].map(|part| format!("{DUAL}{part}"));
    let v = format!("{SINGLE}attn.to_v");
    for (layers, expected) in [
        (
            vec![(q.as_str(), 4, 2, 2.0), (k.as_str(), 5, 2, 2.0)],
            "attn.to_k has 5 outputs, where the original layer has 4 rows",
        ),
        (
            vec![(v.as_str(), WIDTH + 1, 2, 2.0)],
            "attn.to_v has 11 outputs, where the original layer has 10 rows",
        ),
        (
            vec![("norm_out.linear", 7, 2, 2.0)],
            "final_layer.adaLN_modulation.1: has 7 outputs, which have no halves",
        ),
    ] {
        let message = format!("{:#}", made(&layers).write(Format::Kohya).unwrap_err());
        assert!(message.contains(expected), "{message}");
    }
}

/// All linear layers of a HunyuanVideo of one block of each kind, as wide as diffusers wants it to be.
fn widest(rank: usize, wanted: impl Fn(&str) -> bool) -> ParsedAdapter {
    const WIDE: usize = 3072;
    const MLP: usize = 4 * WIDE;
    let mut file = made(&[]);
    let mut rng = Rng::new(5);
    let shape = |layer: &str| -> (usize, usize) {
        let text = layer.starts_with("context_embedder.");
        match layer.rsplit("refiner_blocks.0.").next().unwrap() {
            "ff.net.0.proj" => (4 * WIDE, WIDE),
            "ff.net.2" => (WIDE, 4 * WIDE),
            _ if layer.ends_with("timestep_embedder.linear_1") || layer.ends_with("guidance_embedder.linear_1") => {
                (WIDE, 256)
            }
            _ if layer.ends_with("text_embedder.linear_1") => (WIDE, if text { 8 } else { 12 }),
            "context_embedder.proj_in" => (WIDE, 8),
            "proj_out" => (16, WIDE),
            "single_transformer_blocks.0.proj_out" => (WIDE, WIDE + MLP),
            _ if layer.ends_with("proj_mlp") || layer.ends_with("net.0.proj") => (MLP, WIDE),
            _ if layer.ends_with("net.2") => (WIDE, MLP),
            _ if layer.ends_with("norm_out.linear") => (2 * WIDE, WIDE),
            _ if layer.ends_with("norm.linear") => (3 * WIDE, WIDE),
            _ if layer.contains("norm1") => (6 * WIDE, WIDE),
            _ => (WIDE, WIDE),
        }
    };
    let whole = names().layers.iter().map(|(layer, _)| layer.to_string());
    let parts = names()
        .fused
        .iter()
        .flat_map(|fused| fused.parts.iter().map(|part| format!("{}{part}", fused.stem)));
    for layer in whole
        .chain(parts)
        .map(|layer| layer.replace("{}", "0"))
        .filter(|layer| wanted(layer))
    {
        let (outputs, inputs) = shape(&layer);
        let adapter = Adapter {
            a: random(&mut rng, (rank, inputs)),
            b: random(&mut rng, (outputs, rank)),
            alpha: 3.0,
            use_rslora: false,
        };
        file.layers.insert(layer, adapter);
    }
    file
}

/// diffusers takes a width of 3072 for granted. It reads no file of kohya's programs.
#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn diffusers_loads_what_is_written_for_comfyui_to_the_same_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "_class_name": "HunyuanVideoTransformer3DModel", "in_channels": 4, "out_channels": 4, "num_layers": 1,
        "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 8, "pooled_projection_dim": 12,
    });
    let transformer = folder.path().join("transformer");
    std::fs::create_dir(&transformer).unwrap();
    std::fs::write(transformer.join("config.json"), config.to_string()).unwrap();
    let usual = |layer: &str| {
        ["to_q", "to_k", "to_v", "to_out.0"]
            .iter()
            .any(|end| layer.ends_with(end))
    };
    let all = |_: &str| true;
    type Wanted<'a> = &'a dyn Fn(&str) -> bool;
    let cases: [(usize, Wanted); 2] = [(1, &all), (2, &usual)];
    for (index, (rank, wanted)) in cases.into_iter().enumerate() {
        let file = widest(rank, wanted);
        let files = [Format::Diffusers, Format::ComfyUi].map(|format| {
            let path = folder.path().join(format!("{index}-{format:?}.safetensors"));
            std::fs::write(&path, file.write(format).unwrap()).unwrap();
            path
        });
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/checks/check_lora_formats.py");
        let output = Command::new(crate::needs::python())
            .arg(script)
            .arg("hunyuan_video")
            .arg(&transformer)
            .args(files)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        println!("{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// A layer that two programs know by two names is there twice; the two must agree.
#[test]
fn two_adapters_of_a_layer_must_be_the_same() {
    let there = tensors(&uneven().write(Format::ComfyUi).unwrap());
    let copy = "diffusion_model.txt_in.individual_token_refiner.blocks.1.self_attn.qkv.lora.up.weight";
    let mut other = there.clone();
    other.insert(copy.into(), (&there[copy] * 1.01).unwrap());
    let read = file::from_bytes(&bytes(&other), None, &registry::names()).unwrap();
    let message = read.check().unwrap_err().to_string();
    assert!(
        message.contains("refiner_blocks.1.attn.to_q, which is there twice"),
        "{message}"
    );
    // A program that drops the one or the other leaves the adapter whole.
    for dropped in [".lora.", "context_embedder."] {
        let mut rest = there.clone();
        rest.retain(|name, _| !name.contains(dropped));
        assert!(rest.len() < there.len());
        let found = self::read(&bytes(&rest));
        let off = error(
            &stacked(&found, REFINER, &["to_q", "to_k", "to_v"]),
            &stacked(&uneven(), REFINER, &["to_q", "to_k", "to_v"]),
        );
        assert!(off < 1e-6, "{dropped}: {off:e}");
    }
}
