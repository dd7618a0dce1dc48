//! Trained adapters: target layers, initial values, dropout, files. scripts/fixtures/make_lora.py writes the expected
//! numbers; scripts/checks/check_lora.py loads a file written here with diffusers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use serde::Deserialize;
use vtrain::lora::adapters::Adapters;
use vtrain::lora::diffusers::{self, Named};
use vtrain::lora::file;
use vtrain::lora::trainable::{LoraPair, Trainable};
use vtrain::lora::{Config, TargetModules};
use vtrain::models::cogvideox::dit::Dit;
use vtrain::models::denoiser::{Denoiser, Input};
use vtrain::models::registry;
use vtrain::models::wan::dit::Dit as WanDit;
use vtrain::nn::Load;
use vtrain::nn::adapter::{Adapt, LayerId, WeightForm};
use vtrain::nn::dropout::{Dropout, Seed};
use vtrain::nn::{Weights, linear};
use vtrain::problems::Problems;
use vtrain::rng::Rng;

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(fixtures(name)).unwrap()).unwrap()
}

fn suffixes(names: &[&str]) -> TargetModules {
    TargetModules::Suffixes(names.iter().map(|name| name.to_string()).collect())
}

fn config(rank: usize, alpha: f64, target_modules: TargetModules) -> Config {
    Config {
        rank,
        alpha,
        target_modules,
        ..Config::default()
    }
}

fn trainable(config: &Config, seed: u64) -> Arc<Trainable> {
    Arc::new(Trainable::new(config, &registry::names(), Rng::new(seed), &Device::Cpu).unwrap())
}

/// The adapters of a tiny CogVideoX.
fn planted(config: &Config, model: &str) -> anyhow::Result<Vec<LoraPair>> {
    let trainable = Arc::new(Trainable::new(config, &registry::names(), Rng::new(1), &Device::Cpu)?);
    let folder = fixtures("cogvideox").join(model).join("transformer");
    Dit::load(
        &folder,
        &Load::new(DType::F32, &Device::Cpu).with_adapters(trainable.clone()),
    )?;
    trainable.finish()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn error(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    apart / b.iter().map(|b| b.abs()).fold(0.0, f32::max)
}

#[derive(Deserialize)]
struct Targets {
    names: Vec<String>,
    models: Vec<OnModel>,
    rows: Vec<Matching>,
}

#[derive(Deserialize)]
struct OnModel {
    model: String,
    pattern: TargetModules,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Matching {
    pattern: TargetModules,
    matches: Vec<String>,
}

#[test]
fn names_match_as_they_do_in_peft() {
    let table: Targets = json("lora/targets.json");
    assert_eq!(table.rows.len(), 38);
    for Matching { pattern, matches } in table.rows {
        let matcher = pattern.matcher().unwrap();
        let found: Vec<&String> = table
            .names
            .iter()
            .filter(|name| matcher.matches(name).unwrap())
            .collect();
        assert_eq!(found, matches.iter().collect::<Vec<_>>(), "{pattern:?}");
    }
}

#[test]
fn the_layers_of_a_model_are_those_that_peft_adapts() {
    let table: Targets = json("lora/targets.json");
    for OnModel { model, pattern, layers } in table.models {
        let pairs = planted(&config(2, 2.0, pattern.clone()), &model).unwrap();
        let mut found: Vec<String> = pairs.into_iter().map(|pair| pair.layer).collect();
        found.sort();
        assert_eq!(found, layers, "{model} {pattern:?}");
    }
}

#[test]
fn a_target_without_a_layer_is_told_what_there_is() {
    let told = |target_modules| {
        let error = planted(&config(2, 2.0, target_modules), "cogvideox-5b").unwrap_err();
        error.to_string()
    };
    let message = told(suffixes(&["to_q", "to_qq", "q_proj"]));
    println!("{message}");
    assert!(message.contains("no layer matches 'to_qq', 'q_proj'"), "{message}");
    for kind in ["to_q (2)", "to_out.0 (2)", "net.2 (2)", "proj (3)", "linear_1 (1)"] {
        assert!(message.contains(kind), "{kind} is not in {message}");
    }
    let message = told(TargetModules::Regex("to_q".into())); // a suffix is no whole name
    assert!(message.contains("no layer matches 'to_q'"), "{message}");
}

#[test]
fn a_bad_expression_is_a_problem_of_the_configuration() {
    for pattern in ["to_(q", "*", "", "(?<name"] {
        let config = config(2, 2.0, TargetModules::Regex(pattern.into()));
        let wrong: Vec<_> = Problems::of(|problems| config.check(problems)).into_iter().collect();
        assert_eq!(wrong.len(), 1, "{pattern}");
        assert_eq!(wrong[0].0, "target_modules");
    }
    let slow = TargetModules::Regex(r"(?:(?=a)(a|aa)+)+\b$x".into());
    let matcher = slow.matcher().unwrap();
    assert!(!matcher.matches(&"a".repeat(60)).is_ok_and(|matches| matches)); // gives up, or says no
}

#[derive(Deserialize)]
struct Init {
    seed: u64,
    rows: Vec<Drawn>,
}

#[derive(Deserialize)]
struct Drawn {
    rank: usize,
    #[serde(rename = "in")]
    in_features: usize,
    bits: [i32; 6],
    sum: u64,
}

#[test]
fn first_values_are_those_of_torch_from_one_stream() {
    let init: Init = json("lora/init.json");
    let mut rng = Rng::new(init.seed);
    for drawn in &init.rows {
        // One layer at a time, because ranks differ; `rng` continues after the previous layer.
        let config = config(drawn.rank, 1.0, suffixes(&["layer"]));
        let trainable = Trainable::new(&config, &[], rng.clone(), &Device::Cpu).unwrap();
        trainable
            .adapt(&LayerId {
                path: "layer",
                weight: &[3, drawn.in_features],
                form: WeightForm::Dense,
            })
            .unwrap();
        rng.rand(drawn.rank * drawn.in_features);
        let pairs = trainable.finish().unwrap();
        let bits: Vec<u32> = values(&pairs[0].a).into_iter().map(f32::to_bits).collect();
        let ends = [&bits[..3], &bits[bits.len() - 3..]].concat();
        assert_eq!(ends, drawn.bits.map(|bits| bits as u32));
        assert_eq!(bits.iter().map(|bits| u64::from(*bits)).sum::<u64>(), drawn.sum);
        assert_eq!(pairs[0].b.dims(), [3, drawn.rank]);
        assert!(values(&pairs[0].b).iter().all(|value| *value == 0.0));
    }
}

#[test]
fn layers_draw_one_after_the_other() {
    let config = config(4, 4.0, suffixes(&["x", "y"]));
    let both = trainable(&config, 3);
    both.adapt(&LayerId {
        path: "x",
        weight: &[2, 8],
        form: WeightForm::Dense,
    })
    .unwrap();
    both.adapt(&LayerId {
        path: "z",
        weight: &[2, 8],
        form: WeightForm::Dense,
    })
    .unwrap(); // no target, so it draws nothing
    both.adapt(&LayerId {
        path: "y",
        weight: &[2, 8],
        form: WeightForm::Dense,
    })
    .unwrap();
    let pairs = both.finish().unwrap();
    let whole: Vec<f32> = pairs.iter().flat_map(|pair| values(&pair.a)).collect();
    let expected: Vec<f32> = Rng::new(3).rand(64);
    let bound = 1.0 / 8f32.sqrt();
    for (found, u) in whole.iter().zip(expected) {
        assert!((found - (2.0 * u - 1.0) * bound).abs() <= 1e-7);
    }
    assert_eq!(whole.len(), 64);
}

/// A layer from 6 to 5 numbers under one adapter, with PEFT's values.
fn adapted(config: &Config) -> (vtrain::nn::Linear, LoraPair, Arc<Trainable>, HashMap<String, Tensor>) {
    let answers = candle_core::safetensors::load(fixtures("lora/linear.safetensors"), &Device::Cpu).unwrap();
    let trainable = trainable(config, 1);
    let load = Load::new(DType::F32, &Device::Cpu).with_adapters(trainable.clone());
    let weights = Weights::read(&(&fixtures("lora/linear")).into(), &load).unwrap();
    let layer = linear(6, 5, weights.pp("layer")).unwrap();
    let pair = trainable.finish().unwrap().remove(0);
    pair.a.set(&answers["a"]).unwrap();
    pair.b.set(&answers["b"]).unwrap();
    (layer, pair, trainable, answers)
}

#[test]
fn a_rank_stabilised_adapter_does_what_it_does_in_peft() {
    let config = Config {
        use_rslora: true,
        ..config(4, 3.0, suffixes(&["layer"]))
    };
    let (layer, pair, _, answers) = adapted(&config);
    let x = Var::from_tensor(&answers["x"]).unwrap();
    let y = layer.forward(&x).unwrap();
    let gradients = (&y * &answers["weights"])
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let found = [
        ("y", &y),
        ("grad.a", gradients.get(&pair.a).unwrap()),
        ("grad.b", gradients.get(&pair.b).unwrap()),
        ("grad.x", gradients.get(&x).unwrap()),
    ];
    for (name, found) in found {
        let error = error(found, &answers[name]);
        println!("{name}: {error:.1e}");
        assert!(error <= 1e-6, "{name}: {error:e}");
    }
}

#[test]
fn dropout_drops_its_share_and_keeps_the_mean() {
    let dropout = |layer| Dropout {
        probability: 0.3,
        seed: Seed::default(),
        layer,
    };
    let ones = Tensor::ones((200, 1001), DType::F32, &Device::Cpu).unwrap();
    let one = dropout(0);
    assert_eq!(values(&one.forward(&ones).unwrap()), values(&ones)); // off
    one.seed.set(Some(0));
    let masked = values(&one.forward(&ones).unwrap());
    let kept = masked.iter().filter(|x| **x != 0.0).count() as f64 / masked.len() as f64;
    assert!((kept - 0.7).abs() < 0.005, "{kept}"); // 5 standard deviations
    assert!(masked.iter().all(|x| *x == 0.0 || (x * 0.7 - 1.0).abs() < 1e-6));
    let neighbours = masked
        .windows(2)
        .filter(|pair| pair[0] != 0.0 && pair[1] != 0.0)
        .count();
    assert!((neighbours as f64 / masked.len() as f64 - 0.49).abs() < 0.006);

    assert_eq!(values(&one.forward(&ones).unwrap()), masked); // a block run a second time
    let mut other = dropout(1);
    other.seed = one.seed.clone();
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / a.len() as f64;
    assert!((apart(&values(&other.forward(&ones).unwrap()), &masked) - 0.42).abs() < 0.006);
    one.seed.set(Some(1));
    assert!((apart(&values(&one.forward(&ones).unwrap()), &masked) - 0.42).abs() < 0.006);
}

#[test]
fn dropout_acts_on_what_the_adapter_receives_and_only_where_it_is_seeded() {
    let config = Config {
        dropout: 0.5,
        ..config(4, 3.0, suffixes(&["layer"]))
    };
    let (layer, pair, trainable, answers) = adapted(&config);
    let x = &answers["x"];
    let plain = layer.forward(x).unwrap();
    trainable.dropout().set(Some(9));
    let [once, again] = [(), ()].map(|()| layer.forward(x).unwrap());
    assert_eq!(values(&once), values(&again));
    assert_ne!(values(&once), values(&plain));
    // The same by hand: the frozen layer's part, and the adapter's on the masked input.
    let mask = Dropout {
        probability: 0.5,
        seed: trainable.dropout(),
        layer: 0,
    };
    let adapter = |x: &Tensor| {
        let low = x.reshape((6, 6)).unwrap().matmul(&pair.a.t().unwrap()).unwrap();
        (low.matmul(&pair.b.t().unwrap()).unwrap() * 0.75)
            .unwrap()
            .reshape((2, 3, 5))
            .unwrap()
    };
    let frozen = (plain - adapter(x)).unwrap();
    let expected = (frozen + adapter(&mask.forward(x).unwrap())).unwrap();
    assert!(error(&once, &expected) <= 1e-6);
    trainable.dropout().set(None);
    assert_ne!(values(&once), values(&layer.forward(x).unwrap()));
}

fn named(pairs: &[LoraPair]) -> Vec<Named<'_>> {
    pairs.iter().map(LoraPair::named).collect()
}

/// Gives every B numbers of its own, so that the adapters do something.
fn stir(pairs: &[LoraPair]) {
    let mut rng = Rng::new(33);
    for pair in pairs {
        let b = Tensor::from_vec(rng.randn(pair.b.elem_count()), pair.b.shape(), &Device::Cpu).unwrap();
        pair.b.set(&b).unwrap();
    }
}

#[test]
fn what_is_written_is_read_back_and_learned_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let written = Config {
        use_rslora: true,
        dropout: 0.1,
        ..config(3, 4.5, suffixes(&["to_q", "ff.net.0.proj"]))
    };
    let pairs = planted(&written, "cogvideox-5b").unwrap();
    stir(&pairs);
    let bytes = diffusers::to_bytes(&written, &named(&pairs), None).unwrap();
    assert_eq!(bytes, diffusers::to_bytes(&written, &named(&pairs), None).unwrap());
    std::fs::write(&path, bytes).unwrap();

    let file = file::read_diffusers(&path, 1.0).unwrap();
    assert_eq!(file.layers.len(), pairs.len());
    let again = Config {
        init: Some(path.clone().into()),
        ..written.clone()
    };
    for (pair, read) in pairs.iter().zip(planted(&again, "cogvideox-5b").unwrap()) {
        assert_eq!(pair.layer, read.layer);
        assert_eq!(values(&pair.a), values(&read.a));
        assert_eq!(values(&pair.b), values(&read.b));
        let adapter = &file.layers[&pair.layer];
        assert!((adapter.scale() - written.scale()).abs() < 1e-12);
    }

    type Change = fn(&mut Config);
    let told = |change: Change| {
        let mut config = again.clone();
        change(&mut config);
        planted(&config, "cogvideox-5b").unwrap_err().to_string()
    };
    let cases: [(&str, Change); 5] = [
        ("has rank 3, but lora.rank is 4", |config| config.rank = 4),
        ("has alpha 4.5, but lora.alpha is 9", |config| config.alpha = 9.0),
        ("lora.use_rslora is false", |config| config.use_rslora = false),
        (
            "2 of 4 adapters belong to layers that this run does not train, first transformer_blocks.0",
            |config| config.target_modules = suffixes(&["to_q"]),
        ),
        (
            "2 of 6 layers have no adapter in this file, first transformer_blocks.0.attn1.to_k",
            |config| config.target_modules = suffixes(&["to_q", "to_k", "ff.net.0.proj"]),
        ),
    ];
    for (expected, change) in cases {
        let message = told(change);
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("adapter.safetensors"), "{message}");
    }
    let trainable = trainable(&again, 1);
    trainable
        .adapt(&LayerId {
            path: "transformer_blocks.0.attn1.to_q",
            weight: &[32, 31],
            form: WeightForm::Dense,
        })
        .unwrap();
    let message = trainable.finish().unwrap_err().to_string();
    assert!(
        message.contains("transformer_blocks.0.attn1.to_q") && message.contains("(3, 31)"),
        "{message}"
    );
}

/// The header of a safetensors file, and the bytes behind it.
fn taken_apart(bytes: &[u8]) -> (serde_json::Value, &[u8]) {
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    (serde_json::from_slice(header).unwrap(), data)
}

#[test]
fn an_adapter_file_is_the_one_that_diffusers_writes_but_for_settings_that_an_older_peft_may_not_know() {
    let theirs = std::fs::read(fixtures("cogvideox/lora/pytorch_lora_weights.safetensors")).unwrap();
    let read = file::read_diffusers(&fixtures("cogvideox/lora/pytorch_lora_weights.safetensors"), 1.0).unwrap();
    let config = config(4, 8.0, suffixes(&["to_v", "to_q", "to_k", "to_out.0"]));
    let adapters: Vec<Named> = read
        .layers
        .iter()
        .map(|(layer, adapter)| Named {
            layer,
            input: &adapter.a.dims()[1..],
            a: &adapter.a,
            b: &adapter.b,
        })
        .collect();
    let ours = diffusers::to_bytes(&config, &adapters, None).unwrap();
    let ((mut ours, data), (mut theirs, their_data)) = (taken_apart(&ours), taken_apart(&theirs));
    assert!(data == their_data);
    let settings = |header: &mut serde_json::Value| -> serde_json::Map<String, serde_json::Value> {
        let text = header["__metadata__"]["lora_adapter_metadata"].take();
        serde_json::from_str(text.as_str().unwrap()).unwrap()
    };
    let (settings, their_settings) = (settings(&mut ours), settings(&mut theirs));
    assert_eq!(ours, theirs);
    let keys: Vec<&str> = settings.keys().map(String::as_str).collect();
    let known = ["alpha_pattern", "lora_alpha", "r", "rank_pattern", "target_modules"];
    assert_eq!(keys, known.map(|key| format!("transformer.{key}")));
    for (key, value) in &settings {
        assert_eq!(value, &their_settings[key], "{key}");
    }
}

#[test]
fn what_is_not_finite_is_not_written() {
    let config = config(2, 2.0, suffixes(&["x"]));
    let good = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let b = Tensor::new(&[[1.0, bad], [0.0, 1.0]], &Device::Cpu).unwrap();
        let adapter = Named {
            layer: "block.x",
            input: &[2],
            a: &good,
            b: &b,
        };
        let message = diffusers::to_bytes(&config, &[adapter], None).unwrap_err().to_string();
        assert!(message.contains("transformer.block.x.lora_B.weight"), "{message}");
    }
}

/// With `WRITE_LORA=folder`, leaves files there for scripts/checks/check_lora.py; else in a folder that goes.
#[test]
fn files_for_diffusers_of_every_kind_of_target_can_be_written() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("WRITE_LORA").map_or(scratch.path().to_path_buf(), PathBuf::from);
    let kinds = [
        ("list", suffixes(&["to_q", "to_k", "to_v", "to_out.0"]), false),
        (
            "regex",
            TargetModules::Regex(r".*\.(?!to_k)(to_[qkv]|net\.2)".into()),
            true,
        ),
        ("all", TargetModules::Regex("all-linear".into()), false),
    ];
    for (name, targets, use_rslora) in kinds {
        let config = Config {
            use_rslora,
            ..config(3, 5.0, targets)
        };
        let pairs = planted(&config, "cogvideox-5b").unwrap();
        stir(&pairs);
        let bytes = diffusers::to_bytes(&config, &named(&pairs), None).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let told = &header.metadata().as_ref().unwrap()["lora_adapter_metadata"];
        let told = &serde_json::from_str::<serde_json::Value>(told).unwrap()["transformer.target_modules"];
        match name {
            "regex" => assert_eq!(told, r".*\.(?!to_k)(to_[qkv]|net\.2)"),
            "list" => assert_eq!(told, &serde_json::json!(["to_k", "to_out.0", "to_q", "to_v"])),
            _ => assert_eq!(told.as_array().unwrap().len(), pairs.len(), "each layer by its name"),
        }
        let path = folder.join(format!("{name}.safetensors"));
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(file::read_diffusers(&path, 1.0).unwrap().layers.len(), pairs.len());
    }
}

/// A patch embedding is a convolution in the file, and one product over the numbers of a patch in the model.
#[test]
fn a_trained_patch_embedding_is_written_as_a_convolution_that_samples_alike() {
    // peft: LoraConfig(target_modules=["patch_embedding"]) on nn.Conv3d(4, 28, (1, 2, 2)):
    // lora_A.weight (r, 4, 1, 2, 2), lora_B.weight (28, r, 1, 1, 1)
    let folder = fixtures("wan/wan-2.1-t2v/transformer");
    let config = config(3, 6.0, suffixes(&["patch_embedding"]));
    let trainable = trainable(&config, 1);
    let load = Load::new(DType::F32, &Device::Cpu);
    let model = WanDit::load(&folder, &load.with_adapters(trainable.clone())).unwrap();
    let pairs = trainable.finish().unwrap();
    assert_eq!((pairs.len(), pairs[0].input.as_slice()), (1, &[4, 1, 2, 2][..]));
    stir(&pairs);

    let bytes = diffusers::to_bytes(&config, &named(&pairs), None).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pytorch_lora_weights.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let read = file::read_diffusers(&path, 1.0).unwrap();
    let adapter = &read.layers["patch_embedding"];
    let (out, rank) = (pairs[0].b.dim(0).unwrap(), 3);
    assert_eq!(adapter.a.dims(), [rank, 4, 1, 2, 2]);
    assert_eq!(adapter.b.dims(), [out, rank, 1, 1, 1]);

    let draw = |shape: &[usize]| {
        let values = Rng::new(3).randn(shape.iter().product());
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let width = model.config().text_dim;
    let input = Input::new(draw(&[1, 4, 2, 4, 6]), draw(&[1]), draw(&[1, 5, width]));
    let sampled = WanDit::load(
        &folder,
        &load.with_adapters(Arc::new(Adapters::new(vec![read], &Device::Cpu))),
    );
    let (ours, theirs) = (
        model.forward(&input).unwrap(),
        sampled.unwrap().forward(&input).unwrap(),
    );
    let base = WanDit::load(&folder, &load).unwrap().forward(&input).unwrap();
    let off = |a: &Tensor| {
        let difference = (a - &theirs).unwrap().abs().unwrap().max_all().unwrap();
        difference.to_scalar::<f32>().unwrap()
    };
    assert!(off(&ours) <= 1e-4, "{}", off(&ours));
    assert!(off(&base) > 1e-2, "the adapter changes nothing");

    // Another run starts from it.
    let again = Config {
        init: Some(path.into()),
        ..config
    };
    let trainable = Arc::new(Trainable::new(&again, &registry::names(), Rng::new(9), &Device::Cpu).unwrap());
    WanDit::load(&folder, &load.with_adapters(trainable.clone())).unwrap();
    let started = trainable.finish().unwrap();
    assert_eq!(values(&started[0].a), values(&pairs[0].a));
    assert_eq!(values(&started[0].b), values(&pairs[0].b));
}
