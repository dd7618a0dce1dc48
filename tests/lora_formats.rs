//! Adapter files of several programs. The results of diffusers and PEFT were written by
//! scripts/fixtures/make_lora_formats.py.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use vtrain::lora::adapters::{Adapter, AdapterFile, Deltas};
use vtrain::lora::bytes::Metadata;
use vtrain::lora::comfyui;
use vtrain::lora::file::{self, ParsedAdapter};
use vtrain::lora::format::Format;
use vtrain::lora::merge::Folder;
use vtrain::lora::names::{Division, Names};
use vtrain::lora::resize::resize;
use vtrain::models::FamilyName;
use vtrain::models::registry::{self, FAMILIES};
use vtrain::nn::Load;
use vtrain::rng::Rng;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn formats(name: &str) -> PathBuf {
    fixture("lora/formats").join(name)
}

fn names(family: FamilyName) -> &'static Names {
    FAMILIES.iter().find(|room| room.name == family).unwrap().names
}

fn read(path: &Path) -> ParsedAdapter {
    let read = file::read(path, &registry::names()).unwrap();
    read.check().unwrap();
    read
}

fn vtrain(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Scaled B A, in f64.
fn product(adapter: &Adapter) -> Tensor {
    let (a, b) = (wide(&adapter.a), wide(&adapter.b));
    (b.matmul(&a).unwrap() * adapter.scale()).unwrap()
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
    let pairs = ours.iter().zip(&theirs);
    pairs.fold(0.0, |most: f64, (x, y)| most.max((x - y).abs())) / largest
}

#[test]
fn files_of_other_programs_mean_what_diffusers_takes_them_for() {
    let cases = [
        ("musubi_wan", Format::Kohya, vec!["wan"]),
        ("comfyui_wan", Format::ComfyUi, vec!["wan"]),
        ("comfyui_ltx_video", Format::ComfyUi, vec!["ltx_video"]),
    ];
    for (name, format, families) in cases {
        let found = read(&formats(&format!("{name}.safetensors")));
        assert_eq!(found.format, format, "{name}");
        let found_families: Vec<&str> = found.families.iter().map(|names| names.family).collect();
        assert_eq!(found_families, families, "{name}");
        // diffusers multiplies alpha / rank into the tensors.
        let theirs = read(&formats(&format!("{name}.expected.safetensors")));
        let layers = |read: &ParsedAdapter| read.layers.keys().cloned().collect::<Vec<_>>();
        assert_eq!(layers(&found), layers(&theirs), "{name}");
        for (layer, adapter) in &found.layers {
            let error = error(&product(adapter), &product(&theirs.layers[layer]));
            assert!(error < 1e-6, "{name} {layer} {error:e}");
        }
    }
    let musubi = read(&formats("musubi_wan.safetensors"));
    assert_eq!(musubi.about["modelspec.trigger_phrase"], "a red ball");
}

#[test]
fn ranks_and_alphas_of_single_layers_are_those_of_peft() {
    let cases = [
        ("diffusers_wan.safetensors", "diffusers_wan", Format::Diffusers, "wan"),
        (
            "peft_cogvideox/adapter_model.safetensors",
            "peft_cogvideox",
            Format::Peft,
            "cogvideox",
        ),
    ];
    for (name, expected, format, family) in cases {
        let found = read(&formats(name));
        assert_eq!(found.format, format);
        assert_eq!(found.families[0].family, family);
        let path = formats(&format!("{expected}.expected.safetensors"));
        let theirs = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        assert_eq!(found.layers.len(), theirs.len());
        for (layer, adapter) in &found.layers {
            let error = error(&product(adapter), &theirs[layer]);
            assert!(error < 1e-6, "{name} {layer} {error:e}");
        }
        // Written anew, settings and all, they mean the same.
        let again = file::from_bytes(&found.write(Format::Diffusers).unwrap(), None, &registry::names()).unwrap();
        same(&found, &again);
    }
}

fn same(ours: &ParsedAdapter, theirs: &ParsedAdapter) {
    assert_eq!(ours.layers.len(), theirs.layers.len());
    for (layer, adapter) in &ours.layers {
        let other = &theirs.layers[layer];
        for (x, y) in [(&adapter.a, &other.a), (&adapter.b, &other.b)] {
            assert_eq!(x.dtype(), y.dtype(), "{layer}");
            assert_eq!(x.dims(), y.dims(), "{layer}");
            assert!(
                values(x)
                    .iter()
                    .map(|x| x.to_bits())
                    .eq(values(y).iter().map(|y| y.to_bits())),
                "{layer}"
            );
        }
        let (scale, other) = (adapter.scale(), other.scale());
        assert!((scale - other).abs() <= 1e-12 * scale.abs(), "{layer}: {scale} {other}");
    }
}

/// Adapters of rank 4 on layers of a checkpoint.
fn on_checkpoint(family: FamilyName, transformer: &Path, alpha: f64, wanted: impl Fn(&str) -> bool) -> ParsedAdapter {
    let names = names(family);
    let mut rng = Rng::new(6);
    let mut layers = BTreeMap::new();
    for (name, weight) in effective(transformer, Vec::new()) {
        let Some(layer) = name
            .strip_suffix(".weight")
            .filter(|layer| names.has(layer) && wanted(layer))
        else {
            continue;
        };
        if let [output, input] = *weight.dims() {
            let mut tensor = |rows: usize, columns: usize| {
                Tensor::from_vec(rng.randn(rows * columns), (rows, columns), &Device::Cpu).unwrap()
            };
            let (a, b) = (tensor(4, input), tensor(output, 4));
            layers.insert(
                layer.to_string(),
                Adapter {
                    a,
                    b,
                    alpha,
                    use_rslora: false,
                },
            );
        }
    }
    assert!(layers.len() > 4);
    ParsedAdapter {
        format: Format::Diffusers,
        families: vec![names],
        layers,
        deltas: Deltas::new(),
        alpha_is_a_guess: false,
        strange: Vec::new(),
        about: Metadata::new(),
    }
}

/// diffusers itself loads what is written.
#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn diffusers_loads_the_formats_that_it_knows_to_the_same_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let in_blocks = |layer: &str| layer.starts_with("blocks.");
    let any = |_: &str| true;
    type Case<'a> = (FamilyName, &'a str, f64, &'a dyn Fn(&str) -> bool, &'a [Format]);
    let cases: [Case; 6] = [
        (FamilyName::CogVideoX, "cogvideox/cogvideox-5b", 3.0, &any, &[]),
        (FamilyName::Mochi, "mochi/mochi-1", 3.0, &any, &[]),
        // Layers outside of blocks are called otherwise in ComfyUI, which diffusers does not know of.
        (
            FamilyName::LtxVideo,
            "ltx_video/ltx-0.9.0",
            2.0,
            &|layer| layer.starts_with("transformer_blocks."),
            &[Format::ComfyUi],
        ),
        (
            FamilyName::Wan,
            "wan/wan-2.1-t2v",
            3.0,
            &in_blocks,
            &[Format::ComfyUi, Format::Kohya],
        ),
        (FamilyName::Wan, "wan/wan-2.1-t2v", 2.0, &any, &[Format::ComfyUi]),
        (
            FamilyName::Wan,
            "wan/wan-2.1-i2v",
            1.0,
            &in_blocks,
            &[Format::ComfyUi, Format::Kohya],
        ),
    ];
    for (index, (family, model, alpha, wanted, formats)) in cases.into_iter().enumerate() {
        let transformer = fixture(model).join("transformer");
        let adapters = on_checkpoint(family, &transformer, alpha, wanted);
        let mut files = Vec::new();
        for format in [&[Format::Diffusers], formats].concat() {
            let path = folder.path().join(format!("{index}-{format:?}.safetensors"));
            std::fs::write(&path, adapters.write(format).unwrap()).unwrap();
            files.push(path);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/checks/check_lora_formats.py");
        let name = names(family).family;
        let output = Command::new(crate::needs::python())
            .arg(script)
            .arg(name)
            .arg(transformer)
            .args(files)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        println!("{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Random adapters on every layer that a family can have, of two ranks, in several number formats.
fn made_up(family: FamilyName, dtype: DType, alpha: f64, use_rslora: bool) -> ParsedAdapter {
    let names = names(family);
    let mut rng = Rng::new(5);
    let mut layers = BTreeMap::new();
    let whole = names.layers.iter().map(|(layer, _)| (layer.to_string(), 7));
    let parts = names.fused.iter().flat_map(|fused| {
        let last = fused.parts.len() - 1;
        let outputs = move |index: usize| match fused.division {
            Division::Equal => 7,
            Division::SquaresAndRest(_) if index < last => 5, // as many as inputs
            Division::SquaresAndRest(_) => 11,
            Division::HalvesSwapped => 8,
            Division::WiderOrNarrower => [7, 4][index],
        };
        let name = |part: &str| format!("{}{part}", fused.stem);
        (0..fused.parts.len()).map(move |index| (name(fused.parts[index]), outputs(index)))
    });
    for (index, (layer, outputs)) in whole.chain(parts).enumerate() {
        let blocks = if names.fused.is_empty() { 12 } else { 2 };
        for block in 0..if layer.contains("{}") { blocks } else { 1 } {
            let part = names.fused_part(&layer.replace("{}", "0"));
            if part.is_some_and(|part| part.fused.division == Division::WiderOrNarrower && part.index != block) {
                continue; // a block has one of them
            }
            let rank = match names.fused_part(&layer.replace("{}", "0")) {
                Some(_) => 4, // the same for all parts
                None => 2 + 2 * (index % 2),
            };
            let mut tensor = |rows: usize, columns: usize| {
                let tensor = Tensor::from_vec(rng.randn(rows * columns), (rows, columns), &Device::Cpu).unwrap();
                tensor.to_dtype(dtype).unwrap()
            };
            let (a, b) = (tensor(rank, 5), tensor(outputs, rank));
            let layer = layer.replace("{}", &block.to_string());
            layers.insert(
                layer,
                Adapter {
                    a,
                    b,
                    alpha,
                    use_rslora,
                },
            );
        }
    }
    ParsedAdapter {
        format: Format::Diffusers,
        families: vec![names],
        layers,
        deltas: Deltas::new(),
        alpha_is_a_guess: false,
        strange: Vec::new(),
        about: Metadata::from([("trigger_word".to_string(), "sks \"ball\"".to_string())]),
    }
}

#[test]
fn round_trips_change_no_bit() {
    for family in [
        FamilyName::CogVideoX,
        FamilyName::LtxVideo,
        FamilyName::Wan,
        FamilyName::HunyuanVideo,
        FamilyName::Mochi,
    ] {
        for (dtype, alpha, use_rslora) in [
            (DType::F32, 4.0, false),
            (DType::BF16, 3.7, false),
            (DType::F16, 0.5, false),
            (DType::F32, 5.0, true),
        ] {
            if dtype == DType::F32 && use_rslora && !names(family).alpha_in_diffusers {
                continue; // rounded: see the next test
            }
            let start = made_up(family, dtype, alpha, use_rslora);
            let written = start.write(Format::Diffusers).unwrap();
            for format in [Format::ComfyUi, Format::Kohya] {
                let read = file::from_bytes(&written, None, &registry::names()).unwrap();
                let there = file::from_bytes(&read.write(format).unwrap(), None, &registry::names()).unwrap();
                there.check().unwrap();
                assert_eq!(there.format, format);
                assert_eq!(there.families, start.families);
                same(&start, &there);
                assert!(
                    there.write(Format::Diffusers).unwrap() == written,
                    "{family:?} {dtype:?} {format:?}"
                );
                assert_eq!(there.about, start.about);
            }
        }
    }
}

/// diffusers refuses files for LTX-Video with an alpha, and without one its scale is 1.
#[test]
fn ltx_video_has_no_alpha_in_files_for_comfyui_whatever_the_scale() {
    for (dtype, alpha) in [(DType::F32, 5.0), (DType::BF16, 3.7)] {
        let start = made_up(FamilyName::LtxVideo, dtype, alpha, true);
        let bytes = start.write(Format::ComfyUi).unwrap();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        assert!(tensors.keys().all(|name| !name.ends_with(".alpha")));
        let back = file::from_bytes(&bytes, None, &registry::names()).unwrap();
        for (layer, adapter) in &back.layers {
            let was = &start.layers[layer];
            let name = format!(
                "diffusion_model.{}",
                names(FamilyName::LtxVideo).original(layer).unwrap()
            );
            let there = &tensors[&format!("{name}.lora_B.weight")];
            assert!(error(there, &(wide(&was.b) * was.scale()).unwrap()) < 1e-7, "{layer}");
            assert_eq!((adapter.b.dtype(), adapter.alpha), (dtype, was.alpha));
            assert_eq!(values(&adapter.a), values(&was.a));
            assert!(
                error(&adapter.b, &was.b) <= if dtype == DType::F32 { 1e-7 } else { 0.0 },
                "{layer}"
            );
        }
    }
}

#[test]
fn a_scale_that_is_no_power_of_two_is_written_as_alpha() {
    let names_in = |alpha: f64| {
        let start = made_up(FamilyName::Wan, DType::F32, alpha, false);
        let bytes = start.write(Format::ComfyUi).unwrap();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        tensors
            .into_iter()
            .filter(|(name, _)| name.ends_with(".alpha"))
            .collect::<BTreeMap<_, _>>()
    };
    assert!(names_in(1.0).is_empty()); // 1/2 and 1/4
    let alphas = names_in(3.0);
    let alpha = &alphas["diffusion_model.blocks.7.self_attn.q.alpha"];
    assert_eq!(alpha.dims().len(), 0);
    assert_eq!(alpha.to_scalar::<f32>().unwrap(), 3.0);
}

#[test]
fn without_vtrains_own_notes_a_written_file_means_the_same() {
    for alpha in [1.0, 3.0] {
        let start = made_up(FamilyName::Wan, DType::F32, alpha, true);
        for format in [Format::ComfyUi, Format::Kohya] {
            let bytes = start.write(format).unwrap();
            let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
            let bare = safetensors::serialize(tensors, None).unwrap();
            let read = file::from_bytes(&bare, None, &registry::names()).unwrap();
            for (layer, adapter) in &read.layers {
                let error = error(&product(adapter), &product(&start.layers[layer]));
                assert!(error < 1e-6, "{format:?} {layer} {error:e}");
            }
        }
    }
}

fn file_of(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let tensors = tensors
        .iter()
        .map(|(name, shape)| (*name, Tensor::ones(*shape, DType::F32, &Device::Cpu).unwrap()));
    safetensors::serialize(tensors, None).unwrap()
}

#[test]
fn what_cannot_be_applied_is_told_by_name() {
    let good: [(&str, &[usize]); 2] = [
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", &[2, 4]),
        ("diffusion_model.blocks.0.self_attn.q.lora_B.weight", &[4, 2]),
    ];
    let cases: [(&str, &[usize], &str); 10] = [
        (
            "diffusion_model.blocks.0.self_attn.k.lora_B.bias",
            &[4],
            "only one of lora_A and lora_B",
        ),
        (
            "diffusion_model.blocks.0.modulation.diff_b",
            &[4],
            "is a parameter by itself and has no bias",
        ),
        (
            "diffusion_model.blocks.0.self_attn.q.set_weight",
            &[4],
            "replaces a whole weight",
        ),
        ("diffusion_model.blocks.0.self_attn.q.dora_scale", &[4], "DoRA"),
        (
            "diffusion_model.blocks.0.self_attn.k.lora_A.weight",
            &[2, 4],
            "only one of lora_A and lora_B",
        ),
        ("diffusion_model.blocks.0.self_attn.q.alpha", &[2], "alpha of shape [2]"),
        (
            "diffusion_model.blocks.0.self_attn.qkv.lora_A.weight",
            &[2, 4],
            "not a layer of Wan",
        ),
        ("lora_te_text_model.lora_up.weight", &[2, 4], "text encoder"),
        (
            "diffusion_model.blocks.0.self_attn.q.lora_down.weight",
            &[2, 4],
            "of one kind twice",
        ),
        ("whatever", &[1], "not an adapter in a known format"),
    ];
    for (name, shape, expected) in cases {
        let bytes = file_of(&[good[0], good[1], (name, shape)]);
        let read = file::from_bytes(&bytes, None, &registry::names()).unwrap();
        let message = read.check().unwrap_err().to_string();
        assert!(message.contains(expected), "{name}: {message}");
        assert!(read.write(Format::Kohya).is_err());
    }
    let mixed = file_of(&[good[0], good[1], ("lora_unet_blocks_0_ffn_0.alpha", &[1])]);
    let message = file::from_bytes(&mixed, None, &registry::names())
        .unwrap_err()
        .to_string();
    assert!(message.contains("several formats"), "{message}");
    let message = file::diffusers_from_bytes(&file_of(&good)).unwrap_err();
    assert!(
        format!("{message:#}").contains("vtrain lora convert --to diffusers"),
        "{message:#}"
    );
}

#[test]
fn cutting_an_adapter_knows_no_scale() {
    let mut rng = Rng::new(9);
    let mut random = |rows: usize, columns: usize| {
        Tensor::from_vec(rng.randn(rows * columns), (rows, columns), &Device::Cpu).unwrap()
    };
    let whole = Adapter {
        a: random(8, 40),
        b: random(30, 8),
        alpha: 8.0,
        use_rslora: false,
    };
    let cut = |power: i32| {
        // Powers of two change no digit of any number on the way.
        let scaled = |x: &Tensor| (wide(x) * 2f64.powi(power)).unwrap();
        let (a, b) = (scaled(&whole.a), scaled(&whole.b));
        let layers = BTreeMap::from([("x".to_string(), Adapter { a, b, ..whole.clone() })]);
        resize(&layers, 3).unwrap()
    };
    let usual = cut(0);
    assert!(usual.error > 0.1 && usual.error < 0.9);
    for power in [-60, 60] {
        let other = cut(power);
        assert_eq!(other.error, usual.error, "2^{power}");
        for (other, usual) in [
            (&other.layers["x"].a, &usual.layers["x"].a),
            (&other.layers["x"].b, &usual.layers["x"].b),
        ] {
            assert_eq!(values(other), values(&(usual * 2f64.powi(power)).unwrap()), "2^{power}");
        }
    }
}

#[test]
fn a_cut_adapter_is_the_best_of_its_rank() {
    let mut rng = Rng::new(8);
    let mut random = |rows: usize, columns: usize| {
        Tensor::from_vec(rng.randn(rows * columns), (rows, columns), &Device::Cpu).unwrap()
    };
    // A product of rank 3 under adapters of rank 8: five of their columns add nothing.
    let (a, mix) = (random(3, 40), random(8, 3));
    let a = mix.matmul(&a).unwrap();
    let whole = Adapter {
        a,
        b: random(30, 8),
        alpha: 5.0,
        use_rslora: true,
    };
    let layers = BTreeMap::from([("x.to_q".to_string(), whole.clone())]);
    let resized = resize(&layers, 3).unwrap();
    let cut = &resized.layers["x.to_q"];
    assert_eq!((cut.rank(), cut.b.dims()), (3, [30, 3].as_slice()));
    assert!(error(&product(cut), &product(&whole)) < 1e-6);
    assert!(resized.error < 1e-7, "{}", resized.error);

    let resized = resize(&layers, 2).unwrap();
    let gone = (product(&whole) - product(&resized.layers["x.to_q"])).unwrap();
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    let share = norm(&gone) / norm(&product(&whole));
    assert!((share - resized.error).abs() < 1e-6, "{share} {}", resized.error);
    assert!(share > 0.05);
    // The best: what is left is orthogonal to what is gone, from both sides.
    let kept = product(&resized.layers["x.to_q"]);
    let (left, right) = (
        kept.t().unwrap().matmul(&gone).unwrap(),
        kept.matmul(&gone.t().unwrap()).unwrap(),
    );
    let scale = norm(&kept) * norm(&gone);
    assert!(norm(&left) < 1e-6 * scale && norm(&right) < 1e-6 * scale);

    let zeros = Adapter {
        b: whole.b.zeros_like().unwrap(),
        ..whole.clone()
    };
    let resized = resize(&BTreeMap::from([("x".to_string(), zeros)]), 1).unwrap();
    assert_eq!(resized.error, 0.0);
    assert!(values(&resized.layers["x"].b).iter().all(|x| *x == 0.0));
    assert!(resize(&layers, 0).is_err() && resize(&layers, 8).is_err());
}

const MODEL: &str = "cogvideox/cogvideox-5b";

/// Adapters for the tiny model, in a file that ComfyUI would read.
fn adapter_for_model(folder: &Path) -> PathBuf {
    let source = read(&fixture("cogvideox/lora/pytorch_lora_weights.safetensors"));
    let path = folder.join("style.safetensors");
    let names = names(FamilyName::CogVideoX);
    std::fs::write(
        &path,
        comfyui::write(&source.layers, &source.deltas, names, &source.about).unwrap(),
    )
    .unwrap();
    path
}

/// Every weight of a transformer's folder, under adapters as the sampler plants them.
fn effective(folder: &Path, files: Vec<AdapterFile>) -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            tensors.extend(candle_core::safetensors::load(&path, &Device::Cpu).unwrap());
        }
    }
    for file in files {
        for (layer, adapter) in file.layers {
            let weight = tensors.get_mut(&format!("{layer}.weight")).unwrap();
            let delta = (product(&adapter) * file.strength)
                .unwrap()
                .to_dtype(DType::F32)
                .unwrap();
            *weight = (&*weight + delta).unwrap();
        }
    }
    tensors
}

/// Merging reads 32 MiB at a time: 2048 rows of 4096 numbers in f32.
#[test]
fn rows_behind_the_first_32_mib_of_a_weight_get_their_own_change() {
    const COLUMNS: usize = 4096;
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("transformer"), folder.path().join("merged"));
    std::fs::create_dir_all(&from).unwrap();
    std::fs::create_dir_all(&to).unwrap();
    let mut rng = Rng::new(3);
    let mut tensor =
        |shape: (usize, usize)| Tensor::from_vec(rng.randn(shape.0 * shape.1), shape, &Device::Cpu).unwrap();
    let (mut weights, mut layers) = (std::collections::HashMap::new(), BTreeMap::new());
    for rows in [2048, 2049] {
        let a = tensor((2, COLUMNS));
        let weight = a
            .narrow(0, 0, 1)
            .unwrap()
            .broadcast_as((rows, COLUMNS))
            .unwrap()
            .contiguous()
            .unwrap();
        weights.insert(format!("{rows}.weight"), weight);
        let adapter = Adapter {
            a,
            b: tensor((rows, 2)),
            alpha: 1.0,
            use_rslora: false,
        };
        layers.insert(rows.to_string(), adapter);
    }
    candle_core::safetensors::save(&weights, from.join("model.safetensors")).unwrap();
    let file = AdapterFile {
        path: "style.safetensors".into(),
        strength: 1.0,
        layers,
        deltas: Default::default(),
    };
    Folder::open(&from)
        .unwrap()
        .merge(std::slice::from_ref(&file), &to)
        .unwrap();
    let merged = candle_core::safetensors::load(to.join("model.safetensors"), &Device::Cpu).unwrap();
    for (layer, adapter) in &file.layers {
        let name = format!("{layer}.weight");
        let delta = (adapter.b.matmul(&adapter.a).unwrap() * adapter.scale()).unwrap();
        let expected = (&weights[&name] + delta).unwrap();
        let off = (&merged[&name] - expected)
            .unwrap()
            .abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 1e-4, "{layer} rows: off by {off}");
    }
}

#[test]
fn a_merged_checkpoint_is_the_model_under_its_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let style = adapter_for_model(folder.path());
    let (model, out) = (fixture(MODEL), folder.path().join("merged"));
    let merge = |lora: &str| {
        let (model, out) = (model.to_str().unwrap(), out.to_str().unwrap());
        vtrain(&[
            "lora",
            "merge",
            "--model",
            model,
            "--lora",
            lora,
            "--lora",
            style.to_str().unwrap(),
            out,
        ])
    };
    let output = merge(&format!("{}=-0.25", style.display()));
    assert!(output.status.success(), "{}", stderr(&output));

    let apply = |strength| read(&style).apply(&style, strength).unwrap();
    let expected = effective(&model.join("transformer"), vec![apply(-0.25), apply(1.0)]);
    let found = effective(&out.join("transformer"), Vec::new());
    assert_eq!(expected.len(), found.len());
    let base = effective(&model.join("transformer"), Vec::new());
    let mut changed = 0;
    for (name, tensor) in &expected {
        let error = error(&found[name], tensor);
        assert!(error < 1e-6, "{name} {error:e}");
        changed += usize::from(values(&found[name]) != values(&base[name]));
    }
    assert_eq!(changed, read(&style).layers.len());
    for name in [
        "model_index.json",
        "vae/config.json",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
    ] {
        assert!(
            std::fs::read(out.join(name)).unwrap() == std::fs::read(model.join(name)).unwrap(),
            "{name}"
        );
    }
    vtrain::models::open(&out, FamilyName::Auto)
        .unwrap()
        .denoiser(&Load::new(DType::F32, &Device::Cpu))
        .unwrap();

    let again = merge("other.safetensors");
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("is not empty"), "{}", stderr(&again));
}

#[test]
fn an_adapter_of_another_model_is_not_merged() {
    let folder = tempfile::tempdir().unwrap();
    let wan = formats("diffusers_wan.safetensors");
    let out = folder.path().join("merged");
    let (model, wan) = (fixture(MODEL), wan.to_str().unwrap());
    let output = vtrain(&[
        "lora",
        "merge",
        "--model",
        model.to_str().unwrap(),
        "--lora",
        wan,
        out.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains("blocks.0.attn1.to_q belongs to a layer that this model does not have"));
    assert!(!out.exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn weights_in_half_precision_are_rounded_once() {
    let folder = tempfile::tempdir().unwrap();
    let weight = Tensor::from_vec(Rng::new(3).randn(35), (5, 7), &Device::Cpu).unwrap();
    for dtype in [DType::BF16, DType::F16] {
        let (from, to) = (folder.path().join(dtype.as_str()), folder.path().join("to"));
        std::fs::create_dir_all(&from).unwrap();
        let weight = weight.to_dtype(dtype).unwrap();
        let odd = Tensor::new(&[1u8, 2, 3], &Device::Cpu).unwrap();
        let tensors = [("x.weight", weight.clone()), ("odd", odd)];
        std::fs::write(
            from.join("model.safetensors"),
            safetensors::serialize(tensors, None).unwrap(),
        )
        .unwrap();
        let a = Tensor::from_vec(Rng::new(4).randn(14), (2, 7), &Device::Cpu).unwrap();
        let b = Tensor::from_vec(Rng::new(5).randn(10), (5, 2), &Device::Cpu).unwrap();
        let adapter = Adapter {
            a,
            b,
            alpha: 1.0,
            use_rslora: false,
        };
        let delta = product(&adapter).to_dtype(DType::F32).unwrap();
        let layers = BTreeMap::from([("x".to_string(), adapter)]);
        let file = AdapterFile {
            path: "made up".into(),
            strength: 1.0,
            layers,
            deltas: Deltas::new(),
        };
        Folder::open(&from).unwrap().merge(&[file], &to).unwrap();
        let found = candle_core::safetensors::load(to.join("model.safetensors"), &Device::Cpu).unwrap();
        let exact = (weight.to_dtype(DType::F32).unwrap() + delta).unwrap();
        assert_eq!(found["x.weight"].dtype(), dtype);
        assert!(error(&found["x.weight"], &exact) < 1.0 / 128.0);
        assert_eq!(found["odd"].to_vec1::<u8>().unwrap(), [1, 2, 3]);
    }
}

#[test]
fn the_verbs_say_what_they_did() {
    let folder = tempfile::tempdir().unwrap();
    let style = adapter_for_model(folder.path());
    let style = style.to_str().unwrap();
    let model = fixture(MODEL);
    let model = model.to_str().unwrap();
    let out = folder.path().join("out.safetensors");
    let out = out.to_str().unwrap();
    let ran = |args: &[&str]| {
        let output = vtrain(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = ran(&["lora", "inspect", style, "--model", model]);
    for expected in [
        "family    CogVideoX\n",
        "format    ComfyUi",
        "to_q (2): rank 4, alpha 8, scale 2",
        "all of it fits",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    ran(&["lora", "convert", style, "--to", "kohya", out]);
    let json: serde_json::Value = serde_json::from_str(&ran(&["lora", "inspect", "--json", out])).unwrap();
    assert_eq!(
        (json["format"].as_str(), json["families"][0].as_str()),
        (Some("kohya"), Some("cogvideox"))
    );
    let layer = &json["layers"]["transformer_blocks.0.attn1.to_q"];
    assert_eq!((layer["rank"].as_u64(), layer["alpha"].as_f64()), (Some(4), Some(8.0)));
    assert!(layer["norm"].as_f64().unwrap() > 0.0);
    assert_eq!(json["not_applied"].as_array().unwrap().len(), 0);

    let text = ran(&["lora", "resize", "--rank", "1", style, out]);
    assert!(
        text.starts_with("rank 1: ") && text.contains("% of the adapters' norm is lost; most in"),
        "{text}"
    );
    assert!(read(Path::new(out)).layers.values().all(|adapter| adapter.rank() == 1));

    let wan = formats("diffusers_wan.safetensors");
    let text = ran(&["lora", "inspect", "--model", model, wan.to_str().unwrap()]);
    assert!(
        text.contains("family    Wan") && text.contains("does not have"),
        "{text}"
    );
    let text = ran(&["lora", "inspect", formats("musubi_wan.safetensors").to_str().unwrap()]);
    assert!(
        text.contains("trigger   a red ball") && text.contains("ss_network_module: networks.lora_wan"),
        "{text}"
    );
}

/// ComfyUI has no Allegro, whose blocks are named like LTX-Video's.
#[test]
fn a_file_for_a_program_without_a_family_is_of_another_one() {
    let names = registry::names();
    let layers = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_k"];
    let families = |prefix: &str, lora: &str| {
        let tensors = layers.iter().flat_map(|layer| {
            ["A", "B"].map(|half| {
                let shape = if half == "A" { (2, 4) } else { (4, 2) };
                let tensor = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
                (format!("{prefix}{layer}.{lora}_{half}.weight"), tensor)
            })
        });
        let bytes = safetensors::serialize(tensors.collect::<Vec<_>>(), None).unwrap();
        let read = file::from_bytes(&bytes, None, &names).unwrap();
        read.families.iter().map(|names| names.family).collect::<Vec<_>>()
    };
    assert_eq!(families("transformer.", "lora"), ["ltx_video", "allegro"]);
    assert_eq!(families("diffusion_model.", "lora"), ["ltx_video"]);
}
