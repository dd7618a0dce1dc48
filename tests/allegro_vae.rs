//! Allegro's autoencoder against diffusers: `scripts/fixtures/make_allegro_vae.py` makes the tiny checkpoint and
//! `tests/fixtures/allegro/vae.safetensors`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use vtrain::diffusers_config::Config as _;
use vtrain::models::allegro::vae::{Config, Parts, Vae};
use vtrain::models::autoencoder::Codec as _;
use vtrain::models::tiling::{Cuts, Tiles, Tiling};
use vtrain::nn::vae_memory::VaeTiling;
use vtrain::nn::{Load, Weights};
use vtrain::rng::Rng;

use super::cogvideox_vae::{assert_near, relative_error};
use super::counting::{on_one_thread, peak};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const BAR: f64 = 1e-4;
/// Strides of what is recorded of decoded frames.
const KEPT: [usize; 3] = [3, 5, 5];
/// Sizes of tiles, their distances, and those of a clip: one tile; several along each axis; all. diffusers covers them.
const TILES: [[[usize; 3]; 3]; 6] = [
    [[8, 16, 24], [4, 16, 16], [8, 16, 24]],
    [[4, 16, 16], [4, 8, 8], [4, 16, 16]],
    [[16, 16, 16], [8, 8, 8], [24, 16, 16]],
    [[4, 32, 16], [4, 16, 8], [4, 64, 16]],
    [[4, 16, 24], [4, 8, 16], [4, 16, 56]],
    [[8, 16, 16], [4, 8, 8], [12, 24, 24]],
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/allegro")
}

fn folder() -> PathBuf {
    fixtures().join("allegro-t2v/vae")
}

fn vae() -> Vae {
    Vae::load(&folder(), DType::F32, &Device::Cpu).unwrap()
}

fn tiling(sizes: [usize; 3], strides: [usize; 3]) -> Tiling {
    Tiling::always_ramps(std::array::from_fn(|axis| Tiles::new(sizes[axis], strides[axis])))
}

fn drawn(seed: u64, shape: &[usize]) -> Tensor {
    let numbers = Rng::new(seed).randn(shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn clip(batch: usize, [frames, height, width]: [usize; 3]) -> Tensor {
    drawn(1, &[batch, 3, frames, height, width]).clamp(-1f32, 1f32).unwrap()
}

fn latents(batch: usize, [frames, height, width]: [usize; 3]) -> Tensor {
    drawn(2, &[batch, 4, frames / 4, height / 8, width / 8])
}

/// Returns the recorded part of decoded frames.
fn kept(frames: &Tensor) -> Tensor {
    (0..3).fold(frames.contiguous().unwrap(), |x, axis| {
        let places: Vec<u32> = (0..x.dim(axis + 2).unwrap() as u32).step_by(KEPT[axis]).collect();
        let places = Tensor::new(places, &Device::Cpu).unwrap();
        x.index_select(&places, axis + 2).unwrap()
    })
}

fn name(numbers: [usize; 3]) -> String {
    numbers.map(|number| number.to_string()).join("x")
}

/// Compares both directions with what diffusers made of the same, and returns the decoded frames.
#[track_caller]
fn assert_as_recorded(vae: &mut Vae, [sizes, strides, clip_size]: [[usize; 3]; 3]) -> Tensor {
    let record: HashMap<String, Tensor> =
        candle_core::safetensors::load(fixtures().join("vae.safetensors"), &Device::Cpu).unwrap();
    let key = [sizes, strides, clip_size].map(name).join(".");
    vae.tiling = Some(tiling(sizes, strides));
    let posterior = vae.encode(&clip(1, clip_size)).unwrap();
    assert_near(&posterior.mean, &record[&format!("{key}.mean")], BAR);
    assert_near(&posterior.logvar, &record[&format!("{key}.logvar")], BAR);
    let decoded = vae.decode(&latents(1, clip_size)).unwrap();
    assert_eq!(decoded.dims(), [&[1, 3][..], &clip_size].concat());
    assert_near(&kept(&decoded), &record[&format!("{key}.decode")], BAR);
    decoded
}

#[test]
fn clips_are_coded_in_one_tile_and_in_several_as_in_diffusers() {
    let mut vae = vae();
    for case in TILES {
        assert_as_recorded(&mut vae, case);
    }
}

#[test]
fn other_devices_convolve_as_the_cpu_does() {
    let load = Load::new(DType::F32, &Device::Cpu).with_reference_ops();
    let weights = Weights::read(&folder().as_path().into(), &load).unwrap();
    let mut vae = Vae::read(&folder(), Parts::Both, weights).unwrap();
    assert_as_recorded(&mut vae, TILES[0]);
}

/// `self.kernel` and `self.stride` of diffusers' class.
#[test]
fn tiles_follow_from_the_config_as_in_diffusers() {
    let published = Config::default().tiling();
    assert_eq!(published, tiling([24, 320, 320], [16, 200, 240]));
    assert!(published.splits([28, 8, 8]) && published.splits([4, 328, 8]) && !published.splits([24, 320, 320]));
    assert_eq!(published.name(), "24x, every 16x with ramps, 320x320, every 200x240");
    assert_eq!(vae().tiling, Some(tiling([24, 240, 240], [16, 120, 160])));
    assert_eq!(vae().config.usable_tiling(), vae().tiling);
}

/// diffusers leaves what no tile at a stride covers at a constant. Here a last tile covers it: what is its own equals that of
/// the tile alone, and before, over the ramp, it takes over from the tile before it.
#[test]
fn sizes_that_tiles_at_strides_do_not_cover_have_a_last_tile_that_reaches_the_edge() {
    for (axis, size, step, length, ramp) in [(0, 12, 8, 16, 4), (1, 24, 16, 32, 8), (2, 32, 16, 40, 16)] {
        let (mut vae, mut whole) = (vae(), [4, 8, 8]);
        let (mut sizes, mut steps) = (whole, whole);
        (whole[axis], sizes[axis], steps[axis]) = (length, size, step);
        vae.tiling = Some(tiling(sizes, steps));
        let (dim, start) = (axis + 2, length - size);
        let (clip, latents) = (clip(1, whole), latents(1, whole));
        let by = [4, 8, 8][axis];
        let decode = |from: usize, length: usize| {
            vae.decode(&latents.narrow(dim, from / by, length / by).unwrap())
                .unwrap()
        };
        let encode = |from: usize, length: usize| vae.encode(&clip.narrow(dim, from, length).unwrap()).unwrap().mean;
        let before = (start - 1) / step * step;
        for (whole, [last, previous], by) in [
            (decode(0, length), [start, before].map(|from| decode(from, size)), 1),
            (encode(0, length), [start, before].map(|from| encode(from, size)), by),
        ] {
            let part = |x: &Tensor, from: usize, to: usize| x.narrow(dim, from / by, (to - from) / by).unwrap();
            let own = part(&whole, start + ramp, length);
            assert_near(&own, &part(&last, ramp, size), 1e-6);
            let count = ramp / by;
            let shares: Vec<f32> = (0..count).map(|i| i as f32 / count as f32).collect();
            let mut shape = [1; 5];
            shape[dim] = count;
            let shares = Tensor::from_vec(shares, &shape, &Device::Cpu).unwrap();
            let (new, old) = (
                part(&last, 0, ramp),
                part(&previous, start - before, start - before + ramp),
            );
            let expected = (&old + (new - &old).unwrap().broadcast_mul(&shares).unwrap()).unwrap();
            assert_near(&part(&whole, start, start + ramp), &expected, 1e-5);
        }
    }
}

#[test]
fn clips_smaller_than_a_tile_are_one_tile_of_their_own_size() {
    for (size, cut) in [
        ([4, 8, 8], false),
        ([8, 16, 8], false),
        ([4, 8, 40], true),
        ([12, 8, 8], true),
    ] {
        let decoded = |sizes, strides| {
            let mut vae = vae();
            vae.tiling = Some(tiling(sizes, strides));
            vae.decode(&latents(1, size)).unwrap()
        };
        let tiled = decoded([8, 16, 16], [4, 8, 8]);
        assert_eq!(tiled.dims(), [&[1, 3][..], &size].concat());
        let whole = decoded(size, size);
        assert_eq!(relative_error(&tiled, &whole) > 100.0 * BAR, cut, "{size:?}");
    }
}

#[test]
fn samples_of_a_batch_are_coded_one_by_one() {
    let (vae, size) = (vae(), [4, 16, 24]);
    let (clips, latents) = (clip(2, size), latents(2, size));
    let (means, frames) = (vae.encode(&clips).unwrap().mean, vae.decode(&latents).unwrap());
    for i in 0..2 {
        let alone = |x: &Tensor| x.narrow(0, i, 1).unwrap();
        assert_near(&alone(&means), &vae.encode(&alone(&clips)).unwrap().mean, 0.0);
        assert_near(&alone(&frames), &vae.decode(&alone(&latents)).unwrap(), 0.0);
    }
}

#[test]
fn clips_are_cut_whatever_the_settings_of_memory_are() {
    let (mut vae, size) = (vae(), [12, 48, 56]);
    vae.tiling = Some(tiling([8, 32, 32], [4, 16, 24]));
    let mut cost = |setting| {
        vae.memory.tiling = setting;
        vae.memory.free = Some(1 << 40);
        vae.cost(Parts::Encoder, size).unwrap()
    };
    let never = cost(VaeTiling::Always(false));
    assert!(never.cuts && never.peak() < never.weights + never.whole);
    assert_eq!(never, cost(VaeTiling::AUTO));
    assert_eq!(never, cost(VaeTiling::Always(true)));
    assert_eq!(vae.tiling.unwrap().cuts, Cuts::Always);
}

#[test]
fn the_cost_is_within_10_percent_of_the_bytes_that_are_held() {
    let check = || {
        let tiles = Some(tiling([8, 32, 32], [4, 16, 24]));
        for (size, tiling) in [([8, 32, 32], None), ([12, 56, 40], tiles)] {
            let mut vae = vae();
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
fn the_cost_is_read_from_headers() {
    let load = Load::new(DType::F32, &Device::Cpu);
    let cost = |load: &Load| {
        let vae = Vae::load_half(&folder(), Parts::Decoder, load).unwrap();
        vae.cost(Parts::Decoder, [16, 256, 248]).unwrap()
    };
    assert_eq!(cost(&load.of_headers()), cost(&load));
}

#[test]
fn it_is_computed_in_f32_where_the_config_forces_it() {
    let load = Load::new(DType::BF16, &Device::Cpu).with_reference_ops();
    let weights = Weights::read(&folder().as_path().into(), &load).unwrap();
    let mut vae = Vae::read(&folder(), Parts::Both, weights).unwrap();
    assert_eq!(vae.dtype(), DType::F32);
    assert_as_recorded(&mut vae, TILES[1]);
}

#[test]
fn the_transformer_sees_latents_times_the_scaling_factor() {
    let config = Config::load(&folder()).unwrap();
    let latents = latents(1, [4, 16, 24]);
    let scaled = config.normalize(&latents).unwrap();
    assert_near(&scaled, &(&latents * 0.13).unwrap(), 1e-7);
    assert_near(&config.denormalize(&scaled).unwrap(), &latents, 1e-6);
    let sizes = (
        config.spatial_compression(),
        config.temporal_compression(),
        config.latent_channels(),
    );
    assert_eq!(sizes, (8, 4, 4));
}

#[test]
fn clips_and_latents_that_can_not_be_coded_are_refused() {
    let vae = vae();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for (shape, expected) in [
        ([1, 4, 4, 16, 16], "clips (B, 3, F, H, W) were expected"),
        ([1, 3, 0, 16, 16], "4, 8, 12, ... frames (4 n), not 0"),
        ([1, 3, 1, 16, 16], "4, 8, 12, ... frames (4 n), not 1"),
        ([1, 3, 9, 16, 16], "4, 8, 12, ... frames (4 n), not 9"),
        ([1, 3, 4, 20, 16], "multiples of 8, not 20x16"),
    ] {
        let said = vae.encode(&zeros(&shape)).unwrap_err().to_string();
        assert!(said.contains(expected), "{shape:?}: {said}");
    }
    for shape in [[1, 3, 1, 2, 2], [1, 4, 0, 2, 2], [1, 4, 1, 2, 0]] {
        let said = vae.decode(&zeros(&shape)).unwrap_err().to_string();
        assert!(said.contains("latents (B, 4, f, h, w) were expected"), "{said}");
    }
}

/// Keys and values of `AutoencoderKLAllegro()` in diffusers 0.42.1.
#[test]
fn the_config_of_diffusers_class_is_read() {
    let published = json!({
        "_class_name": "AutoencoderKLAllegro", "_diffusers_version": "0.32.0.dev0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": vec!["AllegroDownBlock3D"; 4],
        "force_upcast": true, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
        "out_channels": 3, "sample_size": 320, "scaling_factor": 0.13, "temporal_compression_ratio": 4,
        "temporal_downsample_blocks": [true, true, false, false],
        "temporal_upsample_blocks": [false, true, true, false], "up_block_types": vec!["AllegroUpBlock3D"; 4],
    });
    assert_eq!(Config::parse(&published.to_string()).unwrap(), Config::default());
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
    let of_ratio = "true for each 2 in temporal_compression_ratio";
    for (key, value, expected) in [
        ("mystery", json!(2), "unknown field `mystery`"),
        (
            "_class_name",
            json!("AutoencoderKL"),
            "_class_name must be AutoencoderKLAllegro",
        ),
        (
            "act_fn",
            json!("gelu"),
            "act_fn must be \"silu\", as in Allegro, found gelu",
        ),
        ("in_channels", json!(4), "in_channels must be 3"),
        ("out_channels", json!(4), "out_channels must be 3"),
        ("temporal_compression_ratio", json!(8), of_ratio),
        (
            "temporal_compression_ratio",
            json!(16),
            "must lie between 1 and 8, found 16",
        ),
        ("temporal_downsample_blocks", json!([true, true, true, false]), of_ratio),
        ("temporal_upsample_blocks", json!([true, true]), of_ratio),
        (
            "block_out_channels",
            json!([]),
            "block_out_channels must be 1 to 4 entries",
        ),
        (
            "block_out_channels",
            json!(vec![2; 5]),
            "block_out_channels must be 1 to 4 entries",
        ),
        (
            "block_out_channels",
            json!([2, 4, 3, 2]),
            "3 channels do not fall into norm_num_groups 2",
        ),
        ("norm_num_groups", json!(0), "do not fall into norm_num_groups 0"),
        (
            "down_block_types",
            json!(["AllegroDownBlock3D"]),
            "AllegroDownBlock3D for each of",
        ),
        ("up_block_types", json!(["UpBlock3D"]), "AllegroUpBlock3D for each of"),
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
            "sample_size",
            json!(232),
            "sample_size must be at least 240, in whole latents",
        ),
        (
            "sample_size",
            json!(244),
            "sample_size must be at least 240, in whole latents",
        ),
        (
            "scaling_factor",
            json!(0),
            "scaling_factor must be a number other than 0",
        ),
        ("latent_channels", json!(5), "by config.json, but is"),
    ] {
        let said = complaint(|config| config[key] = value.clone());
        assert!(said.contains(expected), "{key}: {said}");
    }
}
