//! Mochi's autoencoder against diffusers: `scripts/fixtures/make_mochi_vae.py` makes `tests/fixtures/mochi/vae.safetensors`,
//! and the list of parameters that the tiny checkpoint is drawn by.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;
use vtrain::diffusers_config::Config as _;
use vtrain::models::autoencoder::Codec as _;
use vtrain::models::mochi::vae::{Config, Parts, Vae};
use vtrain::models::tiling::Tiling;
use vtrain::nn::coder::Layer;
use vtrain::nn::coder_memory::{PieceSize, Tally};
use vtrain::nn::conv3d::{FeatureCache, TemporalPadding};
use vtrain::nn::group_norm::{GroupNorm, NormedFrames};
use vtrain::nn::temporal_attention::TemporalAttention;
use vtrain::nn::vae_memory::VaeTiling;
use vtrain::nn::{Load, Weights};
use vtrain::rng::Rng;

use super::cogvideox_vae::{assert_near, relative_error};
use super::counting::{on_one_thread, peak};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const BAR: f64 = 1e-4;
/// Seed of the parameters.
const SEED: u64 = 11;
/// Strides of what is recorded of decoded frames.
const KEPT: [usize; 3] = [3, 5, 5];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mochi")
}

fn record() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join("vae.safetensors"), &Device::Cpu).unwrap()
}

fn drawn(seed: u64, shape: &[usize]) -> Tensor {
    draw(&mut Rng::new(seed), shape)
}

fn draw(rng: &mut Rng, shape: &[usize]) -> Tensor {
    let numbers = rng.randn(shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// Writes the tiny checkpoint, whose parameters are those of `randomise` in `scripts/fixtures/weights.py`.
pub fn write(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::copy(fixtures().join("vae/config.json"), folder.join("config.json")).unwrap();
    let text = std::fs::read_to_string(fixtures().join("vae/shapes.json")).unwrap();
    let shapes: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    let mut rng = Rng::new(SEED);
    let tensors: HashMap<String, Tensor> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let shape: Vec<usize> = serde_json::from_value(shape).unwrap();
            let noise = draw(&mut rng, &shape);
            let gain = name.contains("norm") && name.ends_with("weight");
            let fan_in = shape[1..].iter().product::<usize>() as f64;
            let tensor = match shape.len() {
                1 => noise.affine(0.1, if gain { 1.0 } else { 0.0 }),
                _ => noise / fan_in.sqrt(),
            };
            (name, tensor.unwrap())
        })
        .collect();
    candle_core::safetensors::save(&tensors, folder.join(WEIGHTS)).unwrap();
}

fn checkpoint() -> TempDir {
    let folder = TempDir::new().unwrap();
    write(folder.path());
    folder
}

fn load(folder: &TempDir, half: Parts) -> Vae {
    Vae::load_half(folder.path(), half, &Load::new(DType::F32, &Device::Cpu)).unwrap()
}

fn vae() -> Vae {
    load(&checkpoint(), Parts::Both)
}

/// Returns the autoencoder with the convolutions of other devices.
fn composed() -> Vae {
    let (folder, load) = (checkpoint(), Load::new(DType::F32, &Device::Cpu).with_reference_ops());
    let weights = Weights::read(&folder.path().into(), &load).unwrap();
    Vae::read(folder.path(), Parts::Both, weights).unwrap()
}

fn clip(batch: usize, [frames, height, width]: [usize; 3]) -> Tensor {
    drawn(1, &[batch, 3, frames, height, width]).clamp(-1f32, 1f32).unwrap()
}

fn latents(batch: usize, [frames, height, width]: [usize; 3]) -> Tensor {
    drawn(2, &[batch, 5, (frames - 1) / 6 + 1, height / 8, width / 8])
}

/// Returns the recorded part of decoded frames.
fn kept(frames: &Tensor) -> Tensor {
    (0..3).fold(frames.contiguous().unwrap(), |x, axis| {
        let places: Vec<u32> = (0..x.dim(axis + 2).unwrap() as u32).step_by(KEPT[axis]).collect();
        let places = Tensor::new(places, &Device::Cpu).unwrap();
        x.index_select(&places, axis + 2).unwrap()
    })
}

/// Compares both directions with what diffusers made of the same, and returns the decoded frames.
#[track_caller]
fn assert_as_recorded(vae: &Vae, key: &str, batch: usize, size: [usize; 3]) -> Tensor {
    let record = record();
    let posterior = vae.encode(&clip(batch, size)).unwrap();
    assert_near(&posterior.mean, &record[&format!("{key}.mean")], BAR);
    assert_near(&posterior.logvar, &record[&format!("{key}.logvar")], BAR);
    let decoded = vae.decode(&latents(batch, size)).unwrap();
    assert_eq!(decoded.dims(), [&[batch, 3][..], &size].concat());
    assert_near(&kept(&decoded), &record[&format!("{key}.decode")], BAR);
    decoded
}

#[test]
fn clips_of_1_7_and_13_frames_are_coded_as_in_diffusers() {
    let vae = vae();
    assert_as_recorded(&vae, "whole.1x1x16x24", 1, [1, 16, 24]);
    assert_as_recorded(&vae, "whole.1x13x8x16", 1, [13, 8, 16]);
    assert_as_recorded(&vae, "whole.2x7x8x8", 2, [7, 8, 8]);
}

#[test]
fn other_devices_convolve_as_the_cpu_does() {
    let vae = composed();
    assert_as_recorded(&vae, "whole.2x7x8x8", 2, [7, 8, 8]);
}

#[test]
fn tiles_of_rows_and_columns_are_those_of_diffusers() {
    let mut vae = composed();
    let default = Tiling::square(256, 192);
    assert_eq!(vae.tiling, Some(default), "as enable_tiling() sets them");
    assert!(default.splits([1, 257, 8]) && default.splits([1, 8, 257]) && !default.splits([163, 256, 256]));
    for (key, size) in [("16x8.7x8x24", [7, 8, 24]), ("16x8.1x24x16", [1, 24, 16])] {
        vae.tiling = Some(Tiling::square(16, 8));
        vae.memory.tiling = VaeTiling::Always(true);
        let tiled = assert_as_recorded(&vae, key, 1, size);
        vae.memory.tiling = VaeTiling::Always(false);
        let whole = vae.decode(&latents(1, size)).unwrap();
        assert!(relative_error(&tiled, &whole) > 100.0 * BAR, "tiles leave their mark");
    }
}

#[test]
fn latent_frames_are_decoded_one_by_one_and_the_first_five_frames_are_dropped() {
    let vae = load(&checkpoint(), Parts::Decoder);
    let (size, mut counts) = ([13, 8, 8], Vec::new());
    let emit = &mut |frames: Tensor| {
        counts.push(frames.dim(2)?);
        candle_core::Result::Ok(())
    };
    vae.decode_batches(&latents(1, size), emit).unwrap();
    assert_eq!(counts, [1, 6, 6]);
    // What comes later changes nothing before it.
    let start = latents(1, size).narrow(2, 0, 2).unwrap();
    let (all, start) = (vae.decode(&latents(1, size)).unwrap(), vae.decode(&start).unwrap());
    assert_near(&all.narrow(2, 0, 7).unwrap(), &start, 0.0);
}

#[test]
fn attention_over_time_is_the_same_however_few_rows_pass_together() {
    let folder = checkpoint();
    let weights = Weights::read(&folder.path().into(), &Load::new(DType::F32, &Device::Cpu)).unwrap();
    let block = weights.pp("encoder.block_out"); // two heads
    let attention = || {
        let norm = GroupNorm::load(64, 32, 1e-5, block.pp("norms.0.norm_layer")).unwrap();
        TemporalAttention::load(64, 2, norm.over(NormedFrames::Each), block.pp("attentions.0")).unwrap()
    };
    let x = drawn(4, &[2, 7, 5, 3, 64]);
    let passed = |layer: TemporalAttention| {
        let mut memory = FeatureCache::whole(TemporalPadding::First);
        layer.forward(x.copy().unwrap(), &mut memory, &mut ()).unwrap()
    };
    let whole = passed(attention());
    assert!(relative_error(&whole, &x) > 0.1);
    let size = PieceSize {
        size: [7, 5, 3],
        channels: 64,
    };
    for (numbers, rows) in [(0, 1), (2 * 7 * 3 * 64, 2)] {
        let layer = attention().with_most_together(numbers);
        let mut tally = Tally::new(size, true, false);
        assert_eq!(Layer::<()>::measure(&layer, size, &mut tally), size);
        assert_eq!(tally.peak(), (7 * 5 * 3 + 6 * 7 * rows * 3) * 64);
        assert_near(&passed(layer), &whole, 1e-6);
    }
}

#[test]
fn the_transformer_sees_latents_normalised_by_channel() {
    let config = Config::load(&fixtures().join("vae")).unwrap();
    let latents = drawn(3, &[2, 5, 1, 2, 3]);
    let denormalized = config.denormalize(&latents).unwrap();
    assert_near(&denormalized, &record()["denormalized"], 1e-6);
    assert_near(&config.normalize(&denormalized).unwrap(), &latents, 1e-5);
    let sizes = (
        config.spatial_compression(),
        config.temporal_compression(),
        config.latent_channels(),
    );
    assert_eq!(sizes, (8, 6, 5));
    assert!(config.usable_tiling().is_some());
}

#[test]
fn the_cost_is_within_10_percent_of_the_bytes_that_are_held() {
    let check = || {
        let (vae, size) = (vae(), [7, 16, 16]);
        let (clip, latents) = (clip(1, size), latents(1, size));
        let (encoded, encoding) = peak(|| vae.encode(&clip).map(drop));
        let (decoded, decoding) = peak(|| vae.decode_batches(&latents, |_| candle_core::Result::Ok(())));
        encoded.and(decoded).unwrap();
        for (half, held) in [(Parts::Encoder, encoding), (Parts::Decoder, decoding)] {
            let estimate = vae.cost(half, size).unwrap().whole;
            let ratio = estimate as f64 / held as f64;
            println!("{half:?}: {estimate} estimated, {held} held, {ratio:.3}");
            assert!((0.9..1.1).contains(&ratio), "{half:?}: {estimate} for {held}");
        }
    };
    on_one_thread(check);
}

#[test]
fn the_cost_is_read_from_headers_and_only_the_encoder_s_grows_with_the_frames() {
    let (folder, load) = (checkpoint(), Load::new(DType::F32, &Device::Cpu));
    let whole = |half, load: &Load, frames| {
        let vae = Vae::load_half(folder.path(), half, load).unwrap();
        vae.cost(half, [frames, 16, 24]).unwrap().whole
    };
    let headers = load.of_headers();
    let [short, long] = [7, 25].map(|frames| whole(Parts::Encoder, &headers, frames));
    assert!((2.5..4.0).contains(&(long as f64 / short as f64)), "{short} {long}");
    let [short, long] = [7, 25].map(|frames| whole(Parts::Decoder, &headers, frames));
    assert_eq!(short, long);
    assert_eq!(whole(Parts::Decoder, &load, 7), short);
}

#[test]
fn clips_and_latents_that_can_not_be_coded_are_refused() {
    let folder = checkpoint();
    let (encoder, decoder) = (load(&folder, Parts::Encoder), load(&folder, Parts::Decoder));
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for (shape, expected) in [
        ([1, 4, 1, 16, 16], "clips (B, 3, F, H, W) were expected"),
        ([1, 3, 0, 16, 16], "1, 7, 13, ... frames (6 n + 1), not 0"),
        ([1, 3, 8, 16, 16], "1, 7, 13, ... frames (6 n + 1), not 8"),
        ([1, 3, 1, 20, 16], "multiples of 8, not 20x16"),
    ] {
        let said = encoder.encode(&zeros(&shape)).unwrap_err().to_string();
        assert!(said.contains(expected), "{shape:?}: {said}");
    }
    for shape in [[1, 3, 1, 2, 2], [1, 5, 0, 2, 2], [1, 5, 1, 2, 0]] {
        let said = decoder.decode(&zeros(&shape)).unwrap_err().to_string();
        assert!(said.contains("latents (B, 5, f, h, w) were expected"), "{said}");
    }
    let said = decoder.encode(&zeros(&[1, 3, 1, 16, 16])).unwrap_err().to_string();
    assert!(said.contains("without its encoder"), "{said}");
}

#[test]
fn the_published_config_is_read() {
    // genmo/mochi-1-preview, vae/config.json; the statistics are those of diffusers' defaults.
    let config = Config::default();
    let published = json!({
        "_class_name": "AutoencoderKLMochi", "_diffusers_version": "0.32.0.dev0", "act_fn": "silu",
        "add_attention_block": [false, true, true, true, true], "decoder_block_out_channels": [128, 256, 512, 768],
        "encoder_block_out_channels": [64, 128, 256, 384], "in_channels": 15, "latent_channels": 12,
        "latents_mean": config.latents_mean, "latents_std": config.latents_std, "layers_per_block": [3, 3, 4, 6, 3],
        "out_channels": 3, "scaling_factor": 1.0, "spatial_expansions": [2, 2, 2], "temporal_expansions": [1, 2, 3],
    });
    let read = Config::parse(&published.to_string()).unwrap();
    let narrow = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<f32>>();
    assert_eq!(narrow(&read.latents_mean), narrow(&config.latents_mean));
    assert_eq!(narrow(&read.latents_std), narrow(&config.latents_std));
    let (latents_mean, latents_std) = (config.latents_mean.clone(), config.latents_std.clone());
    assert_eq!((latents_mean.len(), latents_std.len()), (12, 12));
    assert_eq!(
        Config {
            latents_mean,
            latents_std,
            ..read
        },
        config
    );
}

/// Returns the error for the tiny config after a change.
fn complaint(key: &str, value: &Value) -> String {
    let text = std::fs::read_to_string(fixtures().join("vae/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config[key] = value.clone();
    match Config::parse(&config.to_string()) {
        Ok(_) => panic!("{key} {value} should be refused"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn a_config_that_says_something_unknown_or_impossible_is_refused_by_key() {
    for (key, value, expected) in [
        ("mystery", json!(2), "unknown field `mystery`"),
        (
            "_class_name",
            json!("AutoencoderKLWan"),
            "_class_name must be AutoencoderKLMochi",
        ),
        (
            "act_fn",
            json!("gelu"),
            "act_fn must be \"silu\", as in Mochi 1, found gelu",
        ),
        ("in_channels", json!(3), "in_channels must be 15, three colours"),
        ("out_channels", json!(4), "out_channels must be 3"),
        (
            "encoder_block_out_channels",
            json!([32, 48, 32, 32]),
            "48 channels do not fall into 32 groups",
        ),
        (
            "encoder_block_out_channels",
            json!([]),
            "encoder_block_out_channels must be 1 to 8 entries",
        ),
        (
            "decoder_block_out_channels",
            json!([32, 32, 32]),
            "decoder_block_out_channels must have 4 entries, found 3",
        ),
        (
            "decoder_block_out_channels",
            json!([32, 32, 32, 0]),
            "decoder_block_out_channels must lie between 1 and 4096, found 0",
        ),
        (
            "layers_per_block",
            json!([1, 1, 1, 1]),
            "layers_per_block must have 5 entries, found 4",
        ),
        (
            "layers_per_block",
            json!([1, 1, 65, 1, 1]),
            "layers_per_block must lie between 0 and 64, found 65",
        ),
        (
            "add_attention_block",
            json!([true]),
            "add_attention_block must have 5 entries, found 1",
        ),
        (
            "temporal_expansions",
            json!([1, 2, 9]),
            "temporal_expansions must lie between 1 and 8, found 9",
        ),
        (
            "spatial_expansions",
            json!([2, 2, 4]),
            "spatial_expansions must be 2 each, as in Mochi 1",
        ),
        (
            "spatial_expansions",
            json!([2, 2]),
            "spatial_expansions must have 3 entries, found 2",
        ),
        (
            "latent_channels",
            json!(0),
            "latent_channels must lie between 1 and 4096, found 0",
        ),
        (
            "latents_mean",
            json!([0.5]),
            "latents_mean must be latent_channels numbers",
        ),
        (
            "latents_std",
            json!([1, 1, 0, 1, 1]),
            "latents_std must be latent_channels numbers above 0",
        ),
        ("scaling_factor", json!(0), "scaling_factor must be a number above 0"),
    ] {
        let said = complaint(key, &value);
        assert!(said.contains(expected), "{key}: {said}");
    }
}
