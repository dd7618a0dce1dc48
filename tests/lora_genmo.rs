//! Adapters of Mochi in the files of genmo's fine-tuner and of ComfyUI: what they say of the makers' matrices is what they say
//! of the layers that are rows of them here. The expected matrices are worked out here in f64, from the tensors of the files.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use vtrain::lora::adapters::{Adapter, Deltas};
use vtrain::lora::bytes::Metadata;
use vtrain::lora::file::{self, ParsedAdapter};
use vtrain::lora::format::Format;
use vtrain::models::denoiser::{Input, TextEmbeds};
use vtrain::models::{self, FamilyName, registry, replace_transformer};
use vtrain::nn::Load;
use vtrain::rng::Rng;

use super::dit_answers::{Answers, relative_error};

type Tensors = BTreeMap<String, Tensor>;

/// Widths of the clip's stream and of the text's.
const WIDTH: usize = 12;
const TEXT: usize = 10;
const RANK: usize = 3;

fn random(rng: &mut Rng, shape: (usize, usize)) -> Tensor {
    Tensor::from_vec(rng.randn(shape.0 * shape.1), shape, &Device::Cpu).unwrap()
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F64).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    wide(tensor).flatten_all().unwrap().to_vec1().unwrap()
}

/// Outputs and inputs of the layers of genmo's fine-tuner in two blocks, of which the last one does not change the text.
fn sides() -> Vec<(String, (usize, usize))> {
    let of = |block: usize| {
        let all = [
            ("qkv_x", (3 * WIDTH, WIDTH)),
            ("qkv_y", (3 * WIDTH, TEXT)),
            ("proj_x", (WIDTH, WIDTH)),
            ("proj_y", (TEXT, WIDTH)),
        ];
        let all = all
            .into_iter()
            .filter(move |(module, _)| block == 0 || *module != "proj_y");
        all.map(move |(module, sides)| (format!("blocks.{block}.attn.{module}"), sides))
    };
    (0..2).flat_map(of).collect()
}

/// A file as genmo's fine-tuner writes it.
fn genmos() -> (Tensors, Value) {
    let mut rng = Rng::new(3);
    let mut tensors = Tensors::new();
    for (layer, (outputs, inputs)) in sides() {
        tensors.insert(format!("{layer}.lora_A"), random(&mut rng, (RANK, inputs)));
        tensors.insert(format!("{layer}.lora_B"), random(&mut rng, (outputs, RANK)));
    }
    let kwargs = json!({
        "qkv_proj_lora_rank": RANK, "qkv_proj_lora_alpha": 7, "qkv_proj_lora_dropout": 0.0,
        "out_proj_lora_rank": RANK, "out_proj_lora_alpha": 2.5, "out_proj_lora_dropout": 0.0,
    });
    (tensors, kwargs)
}

fn bytes(tensors: &Tensors, kwargs: Option<&Value>) -> Vec<u8> {
    let about = kwargs.map(|kwargs| HashMap::from([("kwargs".to_string(), kwargs.to_string())]));
    safetensors::serialize(tensors, about).unwrap()
}

fn read(bytes: &[u8]) -> ParsedAdapter {
    let read = file::from_bytes(bytes, None, &registry::names()).unwrap();
    read.check().unwrap();
    assert_eq!(read.families[0].family, "mochi");
    read
}

fn tensors(bytes: &[u8]) -> Tensors {
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).unwrap();
    tensors.into_iter().collect()
}

fn header(bytes: &[u8], key: &str) -> Value {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()[key]).unwrap()
}

fn product(adapter: &Adapter) -> Tensor {
    (wide(&adapter.b).matmul(&wide(&adapter.a)).unwrap() * adapter.scale()).unwrap()
}

/// Changes of the layers of a file, one below the other.
fn stacked(file: &ParsedAdapter, layers: &[String]) -> Tensor {
    let parts: Vec<Tensor> = layers.iter().map(|layer| product(&file.layers[layer])).collect();
    Tensor::cat(&parts, 0).unwrap()
}

/// Layers of diffusers that are the rows of one of genmo's.
fn rows_of(layer: &str) -> Vec<String> {
    let (block, module) = layer.strip_prefix("blocks.").unwrap().split_once(".attn.").unwrap();
    let parts: &[&str] = match module {
        "qkv_x" => &["to_q", "to_k", "to_v"],
        "qkv_y" => &["add_q_proj", "add_k_proj", "add_v_proj"],
        "proj_x" => &["to_out.0"],
        "proj_y" => &["to_add_out"],
        _ => panic!("{module}"),
    };
    let named = parts
        .iter()
        .map(|part| format!("transformer_blocks.{block}.attn1.{part}"));
    named.collect()
}

fn scale(layer: &str) -> f64 {
    (if layer.contains("qkv_") { 7.0 } else { 2.5 }) / RANK as f64
}

#[track_caller]
fn assert_near(ours: &Tensor, theirs: &Tensor, what: &str) {
    assert_eq!(ours.dims(), theirs.dims(), "{what}");
    let (ours, theirs) = (values(ours), values(theirs));
    let largest = theirs.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let off = ours.iter().zip(&theirs).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max) / largest;
    assert!(off < 1e-6, "{what}: {off:e}");
}

#[track_caller]
fn assert_same_bits(ours: &Tensors, theirs: &Tensors) {
    assert!(ours.keys().eq(theirs.keys()), "{:?}", ours.keys());
    for (name, tensor) in ours {
        assert_eq!(tensor.dtype(), theirs[name].dtype(), "{name}");
        assert_eq!(values(tensor), values(&theirs[name]), "{name}");
    }
}

#[test]
fn a_file_of_genmos_fine_tuner_changes_the_rows_of_its_matrices() {
    let (there, kwargs) = genmos();
    let found = read(&bytes(&there, Some(&kwargs)));
    assert_eq!(found.format, Format::Genmo);
    assert!(!found.alpha_is_a_guess && found.about.is_empty());
    assert_eq!(found.layers.len(), 4 * 4 - 1);
    for (layer, _) in sides() {
        let matrix = |half: &str| wide(&there[&format!("{layer}.lora_{half}")]);
        let expected = (matrix("B").matmul(&matrix("A")).unwrap() * scale(&layer)).unwrap();
        assert_near(&stacked(&found, &rows_of(&layer)), &expected, &layer);
    }
    // The same without the header, as ComfyUI applies it.
    let bare = read(&bytes(&there, None));
    assert_eq!(bare.format, Format::Original);
    assert!(bare.layers.values().all(|adapter| adapter.scale() == 1.0));
}

#[test]
fn through_any_format_and_back_no_bit_of_genmos_file_changes() {
    let (there, kwargs) = genmos();
    let file = bytes(&there, Some(&kwargs));
    for format in [Format::Genmo, Format::Diffusers, Format::ComfyUi, Format::Kohya] {
        let between = read(&read(&file).write(format).unwrap());
        let back = between.write(Format::Genmo).unwrap();
        assert_eq!(header(&back, "kwargs"), kwargs, "{format:?}");
        if format != Format::ComfyUi {
            assert_same_bits(&tensors(&back), &there);
        }
    }
    // ComfyUI's scale is 1 for files without an alpha: a scale that is no power of two is multiplied into B, in f32.
    let exact = json!({
        "qkv_proj_lora_rank": RANK, "qkv_proj_lora_alpha": 12, "qkv_proj_lora_dropout": 0.0,
        "out_proj_lora_rank": RANK, "out_proj_lora_alpha": 3, "out_proj_lora_dropout": 0.0,
    });
    let comfyui = read(&bytes(&there, Some(&exact))).write(Format::ComfyUi).unwrap();
    let names: Vec<String> = tensors(&comfyui).into_keys().collect();
    assert!(names.contains(&"diffusion_model.blocks.0.attn.qkv_x.lora_A.weight".to_string()));
    assert!(
        names
            .iter()
            .all(|name| name.starts_with("diffusion_model.blocks.") && !name.ends_with(".alpha"))
    );
    let back = read(&comfyui).write(Format::Genmo).unwrap();
    assert_eq!(header(&back, "kwargs"), exact);
    assert_same_bits(&tensors(&back), &there);
}

/// Adapters of these layers, with a rank and an alpha for all.
fn trained(layers: &[(String, (usize, usize))]) -> ParsedAdapter {
    let mut rng = Rng::new(8);
    let layers = layers.iter().map(|(layer, (outputs, inputs))| {
        let adapter = Adapter {
            a: random(&mut rng, (2, *inputs)),
            b: random(&mut rng, (*outputs, 2)),
            alpha: 3.0,
            use_rslora: false,
        };
        (layer.clone(), adapter)
    });
    ParsedAdapter {
        format: Format::Diffusers,
        families: vec![
            registry::names()
                .into_iter()
                .find(|names| names.family == "mochi")
                .unwrap(),
        ],
        layers: layers.collect(),
        deltas: Deltas::new(),
        alpha_is_a_guess: false,
        strange: Vec::new(),
        about: Metadata::new(),
    }
}

/// Layers of genmo's fine-tuner, each by itself as here.
fn apart() -> Vec<(String, (usize, usize))> {
    let all = sides().into_iter().flat_map(|(layer, (outputs, inputs))| {
        let rows = rows_of(&layer);
        let outputs = outputs / rows.len();
        rows.into_iter().map(move |row| (row, (outputs, inputs)))
    });
    all.collect()
}

#[test]
fn adapters_that_learned_apart_are_joined_for_genmos_program_and_come_back_bit_for_bit() {
    let file = trained(&apart());
    let written = file.write(Format::Genmo).unwrap();
    let (there, kwargs) = (tensors(&written), header(&written, "kwargs"));
    assert_eq!(
        (&kwargs["qkv_proj_lora_rank"], &kwargs["qkv_proj_lora_alpha"]),
        (&json!(6), &json!(9))
    );
    assert_eq!(
        (&kwargs["out_proj_lora_rank"], &kwargs["out_proj_lora_alpha"]),
        (&json!(2), &json!(3))
    );
    for (layer, _) in sides() {
        let matrix = |half: &str| wide(&there[&format!("{layer}.lora_{half}")]);
        let change = (matrix("B").matmul(&matrix("A")).unwrap() * 1.5).unwrap();
        assert_near(&change, &stacked(&file, &rows_of(&layer)), &layer);
    }
    let back = read(&written);
    assert_eq!((back.format, back.layers.len()), (Format::Genmo, file.layers.len()));
    for (layer, adapter) in &back.layers {
        let was = &file.layers[layer];
        assert_eq!(
            (values(&adapter.a), values(&adapter.b), adapter.alpha),
            (values(&was.a), values(&was.b), 3.0)
        );
    }
}

#[test]
fn what_genmos_program_has_no_place_for_is_told() {
    let said = |file: &ParsedAdapter| format!("{:#}", file.write(Format::Genmo).unwrap_err());
    let mut layers = apart();
    layers.push(("transformer_blocks.0.ff.net.2".into(), (WIDTH, 16)));
    let message = said(&trained(&layers));
    assert!(
        message.contains("blocks.0.mlp_x.w2: genmo's program has adapters on the attention"),
        "{message}"
    );
    let clip: Vec<_> = apart()
        .into_iter()
        .filter(|(layer, _)| !layer.contains("add"))
        .collect();
    let message = said(&trained(&clip));
    assert!(
        message.contains("on qkv_x and qkv_y of every block; blocks.0.attn.qkv_y and 1 more have none"),
        "{message}"
    );
    let mut file = trained(&apart());
    file.layers
        .get_mut("transformer_blocks.1.attn1.to_out.0")
        .unwrap()
        .alpha = 5.0;
    let message = said(&file);
    assert!(
        message.contains("blocks.0.attn.proj_x has 2 and 1.5, and blocks.1.attn.proj_x 2 and 2.5"),
        "{message}"
    );
    let mut file = trained(&apart());
    file.deltas.insert(
        "proj_out.bias".into(),
        Tensor::ones(4, DType::F32, &Device::Cpu).unwrap(),
    );
    let message = said(&file);
    assert!(
        message.contains("proj_out.bias is added to as a whole, for which genmo's program"),
        "{message}"
    );
    // A rank of 0 is that of layers without adapters.
    let queries: Vec<_> = apart()
        .into_iter()
        .filter(|(layer, _)| !layer.contains("_out"))
        .collect();
    let written = trained(&queries).write(Format::Genmo).unwrap();
    let kwargs = header(&written, "kwargs");
    assert_eq!(
        (&kwargs["out_proj_lora_rank"], &kwargs["out_proj_lora_alpha"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(read(&written).layers.len(), queries.len());
}

#[test]
fn a_header_that_does_not_say_how_strong_adapters_are_is_refused() {
    let (there, mut kwargs) = genmos();
    kwargs.as_object_mut().unwrap().remove("out_proj_lora_alpha");
    let error = file::from_bytes(&bytes(&there, Some(&kwargs)), None, &registry::names()).unwrap_err();
    let message = format!("{error:#}");
    assert!(
        message.contains("kwargs: out_proj_lora_rank is 3, and out_proj_lora_alpha is no number"),
        "{message}"
    );
    // Another program's are kept as they are.
    let others = read(&bytes(&there, Some(&json!({"depth": 2}))));
    assert_eq!(
        (others.format, others.about["kwargs"].as_str()),
        (Format::Original, "{\"depth\":2}")
    );
}

/// The halves of a matrix's rows, the other way round.
fn swapped(whole: &Tensor) -> Tensor {
    let half = whole.dims()[0] / 2;
    Tensor::cat(
        &[whole.narrow(0, half, half).unwrap(), whole.narrow(0, 0, half).unwrap()],
        0,
    )
    .unwrap()
}

/// Names of ComfyUI, layers here, and whether halves are swapped.
#[test]
fn a_file_of_comfyui_has_halves_swapped_and_one_name_for_two_norms() {
    let mut rng = Rng::new(6);
    let cases = [
        (
            "t_embedder.mlp.0",
            "time_embed.timestep_embedder.linear_1",
            (WIDTH, 8),
            false,
        ),
        ("t5_y_embedder.to_kv", "time_embed.pooler.to_kv", (48, 24), false),
        ("t5_yproj", "time_embed.caption_proj", (TEXT, 24), false),
        (
            "blocks.0.mod_x",
            "transformer_blocks.0.norm1.linear",
            (4 * WIDTH, WIDTH),
            false,
        ),
        (
            "blocks.0.mod_y",
            "transformer_blocks.0.norm1_context.linear",
            (4 * TEXT, WIDTH),
            false,
        ),
        (
            "blocks.1.mod_y",
            "transformer_blocks.1.norm1_context.linear_1",
            (TEXT, WIDTH),
            false,
        ),
        (
            "blocks.0.mlp_x.w1",
            "transformer_blocks.0.ff.net.0.proj",
            (64, WIDTH),
            true,
        ),
        (
            "blocks.0.mlp_y.w1",
            "transformer_blocks.0.ff_context.net.0.proj",
            (52, TEXT),
            true,
        ),
        ("blocks.0.mlp_x.w2", "transformer_blocks.0.ff.net.2", (WIDTH, 32), false),
        ("final_layer.mod", "norm_out.linear", (2 * WIDTH, WIDTH), true),
        ("final_layer.linear", "proj_out", (20, WIDTH), false),
    ];
    let mut there = Tensors::new();
    for (name, _, (outputs, inputs), _) in &cases {
        there.insert(
            format!("diffusion_model.{name}.lora_A.weight"),
            random(&mut rng, (2, *inputs)),
        );
        there.insert(
            format!("diffusion_model.{name}.lora_B.weight"),
            random(&mut rng, (*outputs, 2)),
        );
    }
    let found = read(&bytes(&there, None));
    assert_eq!((found.format, found.layers.len()), (Format::ComfyUi, cases.len()));
    for (name, layer, _, halves) in &cases {
        let matrix = |half: &str| wide(&there[&format!("diffusion_model.{name}.lora_{half}.weight")]);
        let theirs = matrix("B").matmul(&matrix("A")).unwrap();
        let ours = product(&found.layers[*layer]);
        assert_near(&ours, &if *halves { swapped(&theirs) } else { theirs.clone() }, name);
        assert!(!halves || values(&ours) != values(&theirs));
    }
    assert_same_bits(&tensors(&found.write(Format::ComfyUi).unwrap()), &there);
    let both = [("linear", 4 * TEXT), ("linear_1", TEXT)];
    let both = both.map(|(norm, outputs)| (format!("transformer_blocks.0.norm1_context.{norm}"), (outputs, WIDTH)));
    let message = format!("{:#}", trained(&both).write(Format::ComfyUi).unwrap_err());
    assert!(
        message.contains("blocks.0.mod_y: a block has one of linear and linear_1 alone"),
        "{message}"
    );
}

/// Tensors of the tiny transformer under the makers' names, as diffusers' `convert_mochi_to_diffusers` finds them.
fn in_genmos_names(ours: &HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let mut theirs = HashMap::new();
    let get = |name: &str| ours.get(name).cloned();
    let mut put = |name: String, tensor: Option<Tensor>| drop(tensor.map(|tensor| theirs.insert(name, tensor)));
    for (name, own) in [
        ("x_embedder.proj", "patch_embed.proj"),
        ("t_embedder.mlp.0", "time_embed.timestep_embedder.linear_1"),
        ("t_embedder.mlp.2", "time_embed.timestep_embedder.linear_2"),
        ("t5_y_embedder.to_kv", "time_embed.pooler.to_kv"),
        ("t5_y_embedder.to_q", "time_embed.pooler.to_q"),
        ("t5_y_embedder.to_out", "time_embed.pooler.to_out"),
        ("t5_yproj", "time_embed.caption_proj"),
        ("final_layer.linear", "proj_out"),
    ] {
        for end in ["weight", "bias"] {
            put(format!("{name}.{end}"), get(&format!("{own}.{end}")));
        }
    }
    put("pos_frequencies".into(), get("pos_frequencies"));
    for end in ["weight", "bias"] {
        let halves = get(&format!("norm_out.linear.{end}")).map(|tensor| swapped(&tensor));
        put(format!("final_layer.mod.{end}"), halves);
    }
    for block in 0..2 {
        let own = |name: &str| get(&format!("transformer_blocks.{block}.{name}"));
        let their = |name: &str| format!("blocks.{block}.{name}");
        for end in ["weight", "bias"] {
            put(their(&format!("mod_x.{end}")), own(&format!("norm1.linear.{end}")));
            let context = ["linear", "linear_1"]
                .iter()
                .find_map(|norm| own(&format!("norm1_context.{norm}.{end}")));
            put(their(&format!("mod_y.{end}")), context);
            put(
                their(&format!("attn.proj_x.{end}")),
                own(&format!("attn1.to_out.0.{end}")),
            );
            put(
                their(&format!("attn.proj_y.{end}")),
                own(&format!("attn1.to_add_out.{end}")),
            );
        }
        for (name, parts) in [
            ("attn.qkv_x", ["attn1.to_q", "attn1.to_k", "attn1.to_v"]),
            (
                "attn.qkv_y",
                ["attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"],
            ),
        ] {
            let parts = parts.map(|part| own(&format!("{part}.weight")).unwrap());
            put(their(&format!("{name}.weight")), Some(Tensor::cat(&parts, 0).unwrap()));
        }
        for (name, norm) in [
            ("q_norm_x", "norm_q"),
            ("k_norm_x", "norm_k"),
            ("q_norm_y", "norm_added_q"),
            ("k_norm_y", "norm_added_k"),
        ] {
            put(
                their(&format!("attn.{name}.weight")),
                own(&format!("attn1.{norm}.weight")),
            );
        }
        for (name, ff) in [("mlp_x", "ff"), ("mlp_y", "ff_context")] {
            let halves = own(&format!("{ff}.net.0.proj.weight")).map(|tensor| swapped(&tensor));
            put(their(&format!("{name}.w1.weight")), halves);
            put(their(&format!("{name}.w2.weight")), own(&format!("{ff}.net.2.weight")));
        }
    }
    theirs
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mochi")
}

/// A checkpoint of the tiny transformer.
fn checkpoint(folder: &Path) {
    for part in ["transformer", "vae"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    std::fs::write(folder.join("model_index.json"), r#"{"_class_name": "MochiPipeline"}"#).unwrap();
    std::fs::copy(fixtures().join("vae/config.json"), folder.join("vae/config.json")).unwrap();
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        std::fs::copy(
            fixtures().join("mochi-1/transformer").join(name),
            folder.join("transformer").join(name),
        )
        .unwrap();
    }
}

#[test]
fn the_makers_own_transformer_predicts_the_same() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(folder.path());
    let weights = folder.path().join("transformer/diffusion_pytorch_model.safetensors");
    let ours = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
    let theirs = in_genmos_names(&ours);
    let path = folder.path().join("dit.safetensors");
    candle_core::safetensors::save(&theirs, &path).unwrap();
    let answers = Answers::of("mochi");
    let of = |what: &str| answers.get(&format!("pair.{what}"));
    let text = TextEmbeds {
        hidden: of("text"),
        mask: Some(of("mask")),
        pooled: None,
    };
    let input = Input::new(of("latents"), of("timestep"), text);
    let replaced = replace_transformer(folder.path().into(), &path).unwrap();
    let family = models::open(replaced, FamilyName::Auto).unwrap();
    let denoiser = family.denoiser(&Load::new(DType::F32, &Device::Cpu)).unwrap();
    let error = relative_error(&denoiser.forward(&input).unwrap(), &of("out"));
    assert!(error <= 1e-5, "{error:e}");
}

fn vtrain(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain")).args(args).output().unwrap()
}

/// The program converts a file to genmo's form and merges it: the same weights as by diffusers' form.
#[test]
fn genmos_file_is_merged_into_a_checkpoint_as_diffusers_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    checkpoint(&folder.path().join("model"));
    let (there, kwargs) = genmos();
    std::fs::write(path("genmo.safetensors"), bytes(&there, Some(&kwargs))).unwrap();
    let done = vtrain(&[
        "lora",
        "convert",
        "--to",
        "diffusers",
        &path("genmo.safetensors"),
        &path("diffusers.safetensors"),
    ]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let back = vtrain(&[
        "lora",
        "convert",
        "--to",
        "genmo",
        &path("diffusers.safetensors"),
        &path("again.safetensors"),
    ]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    let merged = ["genmo", "diffusers", "again"].map(|form| {
        let (lora, out) = (path(&format!("{form}.safetensors")), path(form));
        let done = vtrain(&[
            "lora",
            "merge",
            "--model",
            &path("model"),
            "--dtype",
            "f32",
            "--lora",
            &lora,
            &out,
        ]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        std::fs::read(Path::new(&out).join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
    });
    assert!(merged[0] == merged[1] && merged[0] == merged[2]);
    let layer = "transformer_blocks.0.attn1.to_k.weight";
    let before = std::fs::read(fixtures().join("mochi-1/transformer/diffusion_pytorch_model.safetensors")).unwrap();
    let change = (wide(&tensors(&merged[0])[layer]) - wide(&tensors(&before)[layer])).unwrap();
    let matrix = |half: &str| wide(&there[&format!("blocks.0.attn.qkv_x.lora_{half}")]);
    let theirs = (matrix("B").matmul(&matrix("A")).unwrap() * (7.0 / 3.0)).unwrap();
    let theirs = theirs.narrow(0, WIDTH, WIDTH).unwrap();
    let off = relative_error(&change, &theirs);
    assert!(off < 1e-5, "{off:e}");
}
