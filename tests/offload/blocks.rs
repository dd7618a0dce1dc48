//! Streamed blocks: the same bits as blocks in memory, forwards and backwards, with no more of them in memory than said.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use vtrain::lora::trainable::{LoraPair, Trainable};
use vtrain::lora::{self, TargetModules};
use vtrain::models::{registry, replace_transformer};
use vtrain::nn::load::PartQuantization;
use vtrain::nn::residency::{Residency, ResidentShare};
use vtrain::nn::storage::quantize::Quantization;
use vtrain::nn::stream::spread;
use vtrain::nn::{Load, WeightFolder, Weights};
use vtrain::ops::tape::no_grad;
use vtrain::rng::Rng;
use vtrain::text::t5::{self, T5Encoder};
use vtrain::train::segments::{ActivationPolicy, FreeMemory, forward_backward};

const FAMILIES: [&str; 4] = [
    "cogvideox/cogvideox-5b",
    "ltx_video/ltx-0.9.0",
    "wan/wan-2.1-t2v",
    "allegro/allegro-t2v",
];

/// More blocks than slots, on the way there and back.
const BLOCKS: usize = 5;

const BUCKET: [usize; 3] = [1, 32, 32];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A checkpoint's transformer with [`BLOCKS`] blocks, each another one.
fn deepened(checkpoint: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (
        fixture(checkpoint).join("transformer"),
        folder.path().join("transformer"),
    );
    std::fs::create_dir(&to).unwrap();
    let text = std::fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["num_layers"] = BLOCKS.into();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let mut tensors = HashMap::new();
    for entry in std::fs::read_dir(&from).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            tensors.extend(candle_core::safetensors::load(path, &Device::Cpu).unwrap());
        }
    }
    let mut deeper = HashMap::new();
    for (name, tensor) in &tensors {
        match name.split_once("blocks.0.") {
            None if name.contains("blocks.") => {}
            None => _ = deeper.insert(name.clone(), tensor.clone()),
            Some((before, after)) => {
                for block in 0..BLOCKS {
                    let other = (tensor * (1.0 - block as f64 / 16.0)).unwrap();
                    deeper.insert(format!("{before}blocks.{block}.{after}"), other);
                }
            }
        }
    }
    candle_core::safetensors::save(&deeper, to.join("diffusion_pytorch_model.safetensors")).unwrap();
    folder
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let numbers = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    numbers
        .to_vec1::<f32>()
        .unwrap()
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

/// Loss and gradients of a step, the prediction after it, and the bytes of blocks in memory at most.
struct Ran {
    bits: Vec<Vec<u32>>,
    most: Option<usize>,
}

fn run(folder: &WeightFolder, load: &Load) -> Ran {
    let config = lora::Config {
        rank: 2,
        alpha: 2.0,
        target_modules: TargetModules::Suffixes(vec!["to_q".into(), "to_v".into(), "net.2".into()]),
        ..lora::Config::default()
    };
    let trainable = Arc::new(Trainable::new(&config, &registry::names(), Rng::new(3), &Device::Cpu).unwrap());
    let part = folder.part("transformer");
    let form = load.quantization.transformer;
    let dense = registry::of_transformer(&part).unwrap().dense_modules.of(form);
    let weights = Weights::read(&part, &load.with_adapters(trainable.clone())).unwrap();
    let weights = weights.quantized(form, &dense);
    let batch = registry::open_synthetic(folder, weights.clone(), BUCKET.into(), 1).unwrap();
    let pairs = trainable.finish().unwrap();
    let vars: Vec<Var> = pairs.into_iter().flat_map(|LoraPair { a, b, .. }| [a, b]).collect();
    let loss = |prediction: &Tensor| {
        let error = (prediction.to_dtype(DType::F32)? - &batch.target)?;
        error.sqr()?.mean_all()
    };
    let mut all = Vec::new();
    let saved = ActivationPolicy::InputsAndAttention.saved_activations(FreeMemory::Unknown);
    let passed = forward_backward(&*batch.denoiser, &batch.input, &loss, &vars, saved).unwrap();
    all.push(bits(&passed.loss));
    for (var, gradient) in vars.iter().zip(passed.gradients) {
        let gradient = gradient.unwrap();
        all.push(bits(&gradient));
        let moved = (var.as_tensor() - (gradient * 0.05).unwrap()).unwrap();
        var.set(&moved).unwrap();
    }
    all.push(bits(&no_grad(|| batch.denoiser.forward(&batch.input)).unwrap()));
    Ran {
        bits: all,
        most: weights.lent().map(|lent| lent.live().unwrap().most()),
    }
}

fn streamed(load: &Load, share: f64) -> Load {
    load.with_residency(Residency::Streamed(ResidentShare::Share(share)))
}

/// HunyuanVideo's blocks are of two kinds, of different sizes; Mochi's last one has fewer layers.
#[test]
fn blocks_of_two_sizes_give_the_same_bits() {
    for (checkpoint, blocks) in [("hunyuan_video/checkpoints/t2v", 4), ("mochi/mochi-1", 2)] {
        blocks_give_the_same_bits(checkpoint, blocks);
    }
}

fn blocks_give_the_same_bits(checkpoint: &str, blocks: usize) {
    let folder = WeightFolder::new(&fixture(checkpoint), None);
    for form in [None, Quantization::from_name("nf4")] {
        let load = Load::new(DType::F32, &Device::Cpu).with_quantization(PartQuantization {
            transformer: form,
            text_encoder: None,
        });
        let whole = run(&folder, &load);
        let streamed = [0.0, 0.5, 1.0].map(|share| run(&folder, &streamed(&load, share)));
        for ran in &streamed {
            assert!(ran.bits == whole.bits, "{checkpoint} {form:?}");
        }
        // Two blocks of the larger kind, and all.
        let [none, _, all] = streamed.map(|ran| ran.most.unwrap());
        assert_eq!(none < all, blocks > 2, "{checkpoint} {form:?}: {none} bytes of {all}");
    }
}

/// Checks that nothing changes, whatever share of the blocks stays, and how much of them is in memory: `blocks` of the
/// same size.
fn assert_the_same(what: &str, folder: &WeightFolder, load: &Load, blocks: usize, shares: &[f64]) {
    let whole = run(folder, load);
    assert_eq!(whole.most, None);
    let mut block = 0;
    for share in [&[1.0], shares].concat() {
        let ran = run(folder, &streamed(load, share));
        assert!(ran.bits == whole.bits, "{what}: {share} of the blocks stay");
        let most = ran.most.unwrap();
        if share == 1.0 {
            block = most / blocks;
        }
        let staying = (blocks as f64 * share).round() as usize;
        let expected = (staying + (blocks - staying).min(2)) * block;
        assert_eq!(most, expected, "{what}: {share} of the blocks stay");
    }
}

#[test]
fn streamed_blocks_give_the_same_losses_gradients_and_predictions_in_every_family() {
    for family in FAMILIES {
        let folder = deepened(family);
        let folder = WeightFolder::new(folder.path(), None);
        for (dtype, form) in [(DType::F32, None), (DType::BF16, None), (DType::F32, Some("nf4"))] {
            let quantization = PartQuantization {
                transformer: form.and_then(Quantization::from_name),
                text_encoder: None,
            };
            let load = Load::new(dtype, &Device::Cpu).with_quantization(quantization);
            let shares: &[f64] = if form.is_some() { &[0.0, 0.5] } else { &[0.0] };
            assert_the_same(&format!("{family} {dtype:?} {form:?}"), &folder, &load, BLOCKS, shares);
        }
    }
}

#[test]
fn every_form_of_storage_is_streamed() {
    let folder = deepened(FAMILIES[2]);
    let folder = WeightFolder::new(folder.path(), None);
    for form in ["fp4", "int8", "fp8", "fp8-scaled", "q8_0"] {
        let quantization = PartQuantization {
            transformer: Quantization::from_name(form),
            text_encoder: None,
        };
        let load = Load::new(DType::F32, &Device::Cpu).with_quantization(quantization);
        assert_the_same(form, &folder, &load, BLOCKS, &[0.0]);
    }
}

/// As other programs store them: read where they lie.
#[test]
fn blocks_in_few_bits_are_streamed_from_the_files_that_have_them() {
    let load = Load::new(DType::F32, &Device::Cpu);
    for kind in ["nf4", "int8"] {
        let stored = WeightFolder::new(&fixture("storage/transformers").join(kind), None);
        let folder = WeightFolder::new(&fixture(FAMILIES[2]), None).with_part("transformer", stored);
        assert_the_same(kind, &folder, &load, 2, &[0.0, 0.5]);
    }
    for family in &FAMILIES[1..3] {
        let (name, _) = family.split_once('/').unwrap();
        let checkpoint = tempfile::tempdir().unwrap();
        crate::fuzz::copy(&fixture(family), checkpoint.path());
        let other = fixture("storage/other").join(name);
        std::fs::copy(
            other.join("config.json"),
            checkpoint.path().join("transformer/config.json"),
        )
        .unwrap();
        let folder = WeightFolder::new(checkpoint.path(), None);
        let folder = replace_transformer(folder, &other.join("model.gguf")).unwrap();
        let [whole, ran] = [load.clone(), streamed(&load, 0.0)].map(|load| run(&folder, &load));
        assert!(ran.bits == whole.bits && ran.most > Some(0), "{name} in GGUF");
    }
}

#[test]
fn a_streamed_text_encoder_embeds_the_same() {
    let folder = fixture("cogvideox/cogvideox-5b/text_encoder");
    let config = t5::Config::load(&folder.join("config.json")).unwrap();
    let ids = Tensor::new(&[[3u32, 9, 27, 1, 0, 0]], &Device::Cpu).unwrap();
    for (dtype, form) in [(DType::F32, None), (DType::BF16, None), (DType::BF16, Some("nf4"))] {
        let embedded = |load: &Load| {
            let weights = Weights::read(&(&folder).into(), load).unwrap();
            let weights = weights.quantized(
                form.and_then(Quantization::from_name),
                &["shared.", "relative_attention_bias."],
            );
            let encoder = T5Encoder::new(&config, weights.clone()).unwrap();
            // Twice: the second caption finds blocks of the first one's in the slots.
            let all = [0, 1].map(|_| bits(&encoder.forward(&ids, None).unwrap()));
            (all, weights.lent().map(|lent| lent.live().unwrap()))
        };
        let load = Load::new(dtype, &Device::Cpu);
        let (expected, _) = embedded(&load);
        let (found, live) = embedded(&streamed(&load, 0.0));
        assert!(found == expected, "{dtype:?} {form:?}");
        assert!(live.unwrap().most() > 0, "nothing was streamed");
    }
}

#[test]
fn blocks_in_memory_go_when_another_part_needs_the_room_and_come_again() {
    let folder = deepened(FAMILIES[0]);
    let folder = WeightFolder::new(folder.path(), None);
    for share in [0.0, 0.5, 1.0] {
        let load = streamed(&Load::new(DType::F32, &Device::Cpu), share);
        let weights = Weights::read(&folder.part("transformer"), &load).unwrap();
        let batch = registry::open_synthetic(&folder, weights.clone(), BUCKET.into(), 1).unwrap();
        let live = weights.lent().unwrap().live().unwrap();
        let predict = || bits(&no_grad(|| batch.denoiser.forward(&batch.input)).unwrap());
        let expected = predict();
        assert!(live.now() > 0);
        batch.denoiser.release().unwrap();
        assert_eq!(live.now(), 0, "{share}");
        assert!(predict() == expected, "{share}");
    }
}

#[test]
fn as_many_blocks_stay_as_the_share_says_or_as_fit_half_of_the_free_memory() {
    let share = |share: f64| ResidentShare::Share(share).of(&[10; 5], 2, Some(0));
    assert_eq!([0.0, 0.3, 0.5, 1.0].map(share), [0, 2, 3, 5]);
    let auto = |free: u64| ResidentShare::Auto.of(&[10, 5, 10, 5, 10], 2, Some(free));
    // All of them are 40; else two of the largest, 10, pass through memory besides.
    assert_eq!([80, 79, 60, 59, 40, 0].map(auto), [5, 1, 1, 0, 0, 0]);
    assert_eq!(ResidentShare::Auto.of(&[10; 5], 2, None), 0);
    assert_eq!(ResidentShare::Auto.of(&[], 2, Some(9)), 0);
}

#[test]
fn streamed_blocks_are_spread_evenly_among_those_that_stay() {
    assert!(spread(0, 5).is_empty());
    assert_eq!(spread(1, 5), [2]);
    assert_eq!(spread(2, 5), [1, 3]);
    assert_eq!(spread(3, 9), [1, 4, 7]);
    assert_eq!(spread(4, 8), [1, 3, 5, 7]);
    for blocks in 1..50 {
        assert_eq!(spread(blocks, blocks), (0..blocks).collect::<Vec<_>>());
        for streamed in 1..=blocks {
            let spread = spread(streamed, blocks);
            let gaps: Vec<usize> = spread.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (least, most) = (gaps.iter().min(), gaps.iter().max());
            assert!(
                most.zip(least).is_none_or(|(most, least)| most - least <= 1),
                "{spread:?}"
            );
            assert!(spread.last().is_none_or(|last| *last < blocks));
        }
    }
}

#[test]
fn a_file_that_ends_early_is_told_with_the_block() {
    let folder = deepened(FAMILIES[2]);
    let checkpoint = WeightFolder::new(folder.path(), None);
    let load = streamed(&Load::new(DType::F32, &Device::Cpu), 0.0);
    let weights = Weights::read(&checkpoint.part("transformer"), &load).unwrap();
    let batch = registry::open_synthetic(&checkpoint, weights, BUCKET.into(), 1).unwrap();
    let path = folder.path().join("transformer/diffusion_pytorch_model.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(4096).unwrap();
    let error = batch.denoiser.forward(&batch.input).unwrap_err().to_string();
    assert!(
        error.contains("block 0: its weights could not be read again"),
        "{error}"
    );
}
