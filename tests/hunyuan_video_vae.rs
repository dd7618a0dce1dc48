//! HunyuanVideo's autoencoder against diffusers: `scripts/fixtures/make_hunyuan_vae.py` makes the tiny checkpoint and
//! `tests/fixtures/hunyuan_video/vae.safetensors`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use vtrain::diffusers_config::Config as _;
use vtrain::models::autoencoder::Codec as _;
use vtrain::models::hunyuan_video::vae::{Config, Parts, Vae};
use vtrain::models::tiling::{End, Tiling};
use vtrain::nn::frame_attention::causal_by_frames;
use vtrain::nn::vae_memory::{VaeMemory, VaeTiling};
use vtrain::nn::{Load, Weights};
use vtrain::ops::attention::reference;
use vtrain::rng::Rng;

use super::cogvideox_vae::{assert_near, relative_error};
use super::counting::{on_one_thread, peak};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const BAR: f64 = 1e-4;
const TILES: VaeTiling = VaeTiling::Always(true);
/// Strides of what is recorded of decoded frames.
const KEPT: [usize; 3] = [3, 5, 5];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hunyuan_video")
}

fn folder() -> PathBuf {
    fixtures().join("hunyuan-t2v/vae")
}

fn record() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join("vae.safetensors"), &Device::Cpu).unwrap()
}

fn vae() -> Vae {
    Vae::load(&folder(), DType::F32, &Device::Cpu).unwrap()
}

fn drawn(seed: u64, shape: &[usize]) -> Tensor {
    let numbers = Rng::new(seed).randn(shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn clip(batch: usize, [frames, height, width]: [usize; 3]) -> Tensor {
    drawn(1, &[batch, 3, frames, height, width]).clamp(-1f32, 1f32).unwrap()
}

fn latents(batch: usize, [frames, height, width]: [usize; 3]) -> Tensor {
    drawn(2, &[batch, 5, (frames - 1) / 4 + 1, height / 8, width / 8])
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

fn name(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

#[test]
fn clips_of_1_5_9_and_33_frames_are_coded_whole_as_in_diffusers() {
    let mut vae = vae();
    for (batch, size) in [(1, [1, 16, 24]), (1, [5, 24, 40]), (2, [9, 16, 24]), (1, [33, 16, 8])] {
        assert_as_recorded(&vae, &format!("whole.{batch}x{}", name(&size)), batch, size);
    }
    vae.memory.slicing = true;
    assert_as_recorded(&vae, "whole.2x9x16x24", 2, [9, 16, 24]);
}

#[test]
fn other_devices_convolve_as_the_cpu_does() {
    let load = Load::new(DType::F32, &Device::Cpu).with_reference_ops();
    let weights = Weights::read(&folder().as_path().into(), &load).unwrap();
    let vae = Vae::read(&folder(), Parts::Both, weights).unwrap();
    assert_as_recorded(&vae, "whole.1x5x24x40", 1, [5, 24, 40]);
}

#[test]
fn tiles_along_frames_rows_and_columns_are_those_of_diffusers() {
    let mut vae = vae();
    let default = Tiling::square(256, 192).with_frames(16, 12, End::First);
    assert_eq!(vae.tiling, Some(default), "as enable_tiling() sets them");
    assert!(default.splits([17, 8, 8]) && default.splits([1, 257, 8]) && !default.splits([16, 256, 256]));
    for (pixels, frames, size) in [
        (None, Some([16, 12]), [33, 16, 8]),
        (None, Some([8, 4]), [13, 8, 16]),
        (Some([32, 24]), None, [5, 40, 32]),
        (Some([16, 8]), None, [1, 24, 40]),
        (Some([16, 8]), Some([8, 4]), [13, 8, 24]),
    ] {
        let [side, stride] = pixels.unwrap_or([256, 192]);
        let tiling = Tiling::square(side, stride);
        vae.tiling = Some(frames.map_or(tiling, |[long, stride]| tiling.with_frames(long, stride, End::First)));
        vae.memory.tiling = TILES;
        let parts: Vec<String> = [pixels, frames].into_iter().flatten().map(|part| name(&part)).collect();
        let tiled = assert_as_recorded(&vae, &format!("{}.{}", parts.join("."), name(&size)), 1, size);
        vae.memory.tiling = VaeTiling::Always(false);
        let whole = vae.decode(&latents(1, size)).unwrap();
        assert!(relative_error(&tiled, &whole) > 100.0 * BAR, "tiles leave their mark");
    }
}

/// Hence pieces of a clip would give something else.
#[test]
fn the_first_frame_depends_on_the_last_one() {
    let (vae, size) = (vae(), [9, 16, 24]);
    let latents = latents(1, size);
    let changed = Tensor::cat(
        &[
            latents.narrow(2, 0, 2).unwrap(),
            (latents.narrow(2, 2, 1).unwrap() * 3.0).unwrap(),
        ],
        2,
    );
    let first = |latents: &Tensor| vae.decode(latents).unwrap().narrow(2, 0, 1).unwrap();
    assert!(relative_error(&first(&changed.unwrap()), &first(&latents)) > 1e-2);
}

/// Queries, keys and values of four frames of six pixels, with two heads; the mask of `prepare_causal_attention_mask`.
#[test]
fn attention_by_frames_is_attention_with_a_mask_however_few_queries_pass_together() {
    let part = |seed| drawn(seed, &[2, 24, 2, 5]);
    let (q, k, v) = (part(3), part(4), part(5));
    let mask = (0..24 * 24).map(|i| {
        if i % 24 / 6 <= i / 24 / 6 {
            0.0
        } else {
            f32::NEG_INFINITY
        }
    });
    let mask = Tensor::from_iter(mask, &Device::Cpu)
        .unwrap()
        .reshape((1, 1, 24, 24))
        .unwrap();
    let expected = reference(&q, &k, &v, Some(&mask)).unwrap();
    for scores in [0, 50, 100, 1 << 20] {
        let found = causal_by_frames([&q, &k, &v], 6, scores).unwrap();
        assert_near(&found, &expected, 1e-6);
    }
}

#[test]
fn the_transformer_sees_latents_times_the_scaling_factor() {
    let config = Config::load(&folder()).unwrap();
    let latents = latents(1, [5, 16, 24]);
    let scaled = config.normalize(&latents).unwrap();
    assert_near(&scaled, &(&latents * 0.476986).unwrap(), 1e-7);
    assert_near(&config.denormalize(&scaled).unwrap(), &latents, 1e-6);
    let sizes = (
        config.spatial_compression(),
        config.temporal_compression(),
        config.latent_channels(),
    );
    assert_eq!(sizes, (8, 4, 5));
    assert!(config.usable_tiling().is_some());
}

#[test]
fn auto_cuts_long_clips_of_small_frames_where_they_do_not_fit_whole() {
    let (mut vae, size) = (vae(), [17, 16, 8]);
    vae.tiling = Some(Tiling::square(256, 192).with_frames(8, 4, End::First));
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut coded = |tiling, free| {
        vae.memory = VaeMemory {
            tiling,
            slicing: false,
            free,
        };
        let cost = vae.cost(Parts::Encoder, size).unwrap();
        let encoded = vae.encode(&clip(1, size)).unwrap().mean;
        (cost, values(&encoded), values(&vae.decode(&latents(1, size)).unwrap()))
    };
    let (whole, tiled) = (coded(VaeTiling::Always(false), None), coded(TILES, None));
    assert!(whole.1 != tiled.1 && whole.2 != tiled.2 && !whole.0.cuts && tiled.0.cuts);
    let (most, least) = (whole.0.whole, whole.0.tiled.unwrap());
    assert!(least < most * 3 / 4, "9 frames of 17: {least} of {most}");
    assert_eq!(coded(VaeTiling::AUTO, Some(1 << 40)), whole);
    assert_eq!(coded(VaeTiling::AUTO, Some(1 << 10)), tiled);
    let cost = |frames| vae.cost(Parts::Decoder, [frames, 16, 16]).unwrap();
    assert!(cost(9).tiled.is_some(), "three latent frames");
    assert_eq!(cost(5).tiled, None);
}

#[test]
fn the_cost_is_within_10_percent_of_the_bytes_that_are_held() {
    let check = || {
        let tiles = Tiling::square(256, 192).with_frames(16, 12, End::First);
        for (size, tiling) in [([5, 32, 48], None), ([29, 16, 24], Some(tiles))] {
            let mut vae = vae();
            vae.memory.tiling = VaeTiling::Always(tiling.is_some());
            vae.tiling = tiling;
            let (clip, latents) = (clip(1, size), latents(1, size));
            let (encoded, encoding) = peak(|| vae.encode(&clip).map(drop));
            let (decoded, decoding) = peak(|| vae.decode_batches(&latents, |_| candle_core::Result::Ok(())));
            encoded.and(decoded).unwrap();
            for (half, held) in [(Parts::Encoder, encoding), (Parts::Decoder, decoding)] {
                let cost = vae.cost(half, size).unwrap();
                assert_eq!(cost.cuts, tiling.is_some());
                let estimate = cost.peak() - cost.weights;
                let ratio = estimate as f64 / held as f64;
                println!("{half:?} {size:?}: {estimate} estimated, {held} held, {ratio:.3}");
                assert!((0.9..1.1).contains(&ratio), "{half:?} {size:?}: {estimate} for {held}");
            }
        }
    };
    on_one_thread(check);
}

#[test]
fn the_cost_is_read_from_headers_and_grows_with_a_clip_that_is_whole() {
    let load = Load::new(DType::F32, &Device::Cpu);
    let headers = Vae::load_half(&folder(), Parts::Decoder, &load.of_headers()).unwrap();
    let cost = |frames| headers.cost(Parts::Decoder, [frames, 16, 24]).unwrap();
    let (short, long) = (cost(9).whole, cost(33).whole);
    assert!((3.0..4.0).contains(&(long as f64 / short as f64)), "{short} {long}");
    let numbers = Vae::load_half(&folder(), Parts::Decoder, &load).unwrap();
    assert_eq!(numbers.cost(Parts::Decoder, [9, 16, 24]).unwrap(), cost(9));
}

#[test]
fn half_a_vae_does_half_the_work_and_says_so() {
    let (clip, latents) = (clip(1, [1, 16, 24]), latents(1, [1, 16, 24]));
    let load = |half| Vae::load_half(&folder(), half, &Load::new(DType::F32, &Device::Cpu)).unwrap();
    let (encoder, decoder) = (load(Parts::Encoder), load(Parts::Decoder));
    assert!(encoder.encode(&clip).is_ok() && decoder.decode(&latents).is_ok());
    let said = encoder.decode(&latents).unwrap_err().to_string();
    assert!(said.contains("without its decoder"), "{said}");
    let said = decoder.encode(&clip).unwrap_err().to_string();
    assert!(said.contains("without its encoder"), "{said}");
}

#[test]
fn clips_and_latents_that_can_not_be_coded_are_refused() {
    let vae = vae();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for (shape, expected) in [
        ([1, 4, 1, 16, 16], "clips (B, 3, F, H, W) were expected"),
        ([1, 3, 0, 16, 16], "1, 5, 9, ... frames (4 n + 1), not 0"),
        ([1, 3, 8, 16, 16], "1, 5, 9, ... frames (4 n + 1), not 8"),
        ([1, 3, 1, 20, 16], "multiples of 8, not 20x16"),
    ] {
        let said = vae.encode(&zeros(&shape)).unwrap_err().to_string();
        assert!(said.contains(expected), "{shape:?}: {said}");
    }
    for shape in [[1, 3, 1, 2, 2], [1, 5, 0, 2, 2], [1, 5, 1, 2, 0]] {
        let said = vae.decode(&zeros(&shape)).unwrap_err().to_string();
        assert!(said.contains("latents (B, 5, f, h, w) were expected"), "{said}");
    }
}

#[test]
fn the_published_config_is_read() {
    // hunyuanvideo-community/HunyuanVideo, vae/config.json.
    let published = json!({
        "_class_name": "AutoencoderKLHunyuanVideo", "_diffusers_version": "0.32.0.dev0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": vec!["HunyuanVideoDownBlock3D"; 4],
        "in_channels": 3, "latent_channels": 16, "layers_per_block": 2, "mid_block_add_attention": true,
        "norm_num_groups": 32, "out_channels": 3, "scaling_factor": 0.476986, "spatial_compression_ratio": 8,
        "temporal_compression_ratio": 4, "up_block_types": vec!["HunyuanVideoUpBlock3D"; 4],
    });
    let config = Config::parse(&published.to_string()).unwrap();
    assert_eq!(config, Config::default());
    let changes: Vec<_> = (0..4).map(|i| config.resamples_time(i)).collect();
    assert_eq!(changes, [Some(false), Some(true), Some(true), None]);
}

/// Returns the error for the fixture after `change` to its config.
fn complaint(change: impl Fn(&mut serde_json::Value)) -> String {
    let copy = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(folder().join("config.json")).unwrap();
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut config);
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(folder().join(WEIGHTS), copy.path().join(WEIGHTS)).unwrap();
    match Vae::load(copy.path(), DType::F32, &Device::Cpu) {
        Ok(_) => panic!("that should not load"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn a_config_that_says_something_unknown_or_impossible_is_refused_by_key() {
    let of_class = "_class_name must be AutoencoderKLHunyuanVideo";
    for (key, value, expected) in [
        ("mystery", json!(2), "unknown field `mystery`"),
        ("_class_name", json!("AutoencoderKLHunyuanVideo15"), of_class),
        (
            "act_fn",
            json!("gelu"),
            "act_fn must be \"silu\", as in HunyuanVideo, found gelu",
        ),
        ("in_channels", json!(4), "in_channels must be 3"),
        ("out_channels", json!(4), "out_channels must be 3"),
        (
            "temporal_compression_ratio",
            json!(8),
            "temporal_compression_ratio must be 4",
        ),
        (
            "mid_block_add_attention",
            json!(false),
            "mid_block_add_attention must be true",
        ),
        (
            "spatial_compression_ratio",
            json!(16),
            "2 for each of block_out_channels but one, multiplied, found 16",
        ),
        (
            "block_out_channels",
            json!([2, 4]),
            "block_out_channels must be 3 to 8 entries",
        ),
        (
            "block_out_channels",
            json!([]),
            "block_out_channels must be 3 to 8 entries",
        ),
        (
            "block_out_channels",
            json!([2, 4, 3, 4]),
            "3 channels do not fall into norm_num_groups 2",
        ),
        ("norm_num_groups", json!(0), "do not fall into norm_num_groups 0"),
        (
            "down_block_types",
            json!(["HunyuanVideoDownBlock3D"]),
            "HunyuanVideoDownBlock3D for each of",
        ),
        (
            "up_block_types",
            json!(["UpBlock3D"]),
            "HunyuanVideoUpBlock3D for each of",
        ),
        (
            "latent_channels",
            json!(0),
            "latent_channels must lie between 1 and 4096, found 0",
        ),
        (
            "layers_per_block",
            json!(0),
            "layers_per_block must lie between 1 and 64, found 0",
        ),
        ("layers_per_block", json!(2), "is missing"),
        (
            "scaling_factor",
            json!(0),
            "scaling_factor must be a number other than 0",
        ),
        ("latent_channels", json!(4), "by config.json, but is"),
    ] {
        let said = complaint(|config| config[key] = value.clone());
        assert!(said.contains(expected), "{key}: {said}");
    }
}
