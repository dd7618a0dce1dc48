//! The CogVideoX autoencoder against diffusers.
//!
//! Fixtures: `tests/fixtures/cogvideox/README.md`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use vtrain::models::cogvideox::vae::{Parts, Vae};
use vtrain::models::tiling::{End, Tiles, Tiling};
use vtrain::nn::Load;
use vtrain::nn::vae_memory::VaeTiling;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox")
}

fn record() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join("vae.safetensors"), &Device::Cpu).unwrap()
}

fn vae() -> Vae {
    Vae::load(&fixtures().join("cogvideox-2b/vae"), DType::F32, &Device::Cpu).unwrap()
}

/// |a - b| / |b|
pub fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let norm = |x: Tensor| {
        let sum = x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap();
        sum.to_scalar::<f64>().unwrap().sqrt()
    };
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    norm((wide(a) - wide(b)).unwrap()) / norm(wide(b)).max(1e-30)
}

#[track_caller]
pub fn assert_near(a: &Tensor, b: &Tensor, bar: f64) {
    let error = relative_error(a, b);
    assert!(
        error <= bar,
        "the relative error is {error:e}, which is more than {bar:e}"
    );
}

const BAR: f64 = 1e-4;

#[test]
fn clips_of_1_5_9_and_17_frames_encode_as_in_diffusers() {
    let (vae, record) = (vae(), record());
    for frames in [1, 5, 9, 17] {
        let posterior = vae.encode(&record["clip"].narrow(2, 0, frames).unwrap()).unwrap();
        assert_near(&posterior.mean, &record[&format!("encode.{frames}.mean")], BAR);
        assert_near(&posterior.logvar, &record[&format!("encode.{frames}.logvar")], BAR);
    }
}

#[test]
fn latents_of_1_2_3_and_5_frames_decode_as_in_diffusers() {
    let (vae, record) = (vae(), record());
    for frames in [1, 2, 3, 5] {
        let decoded = vae.decode(&record["latents"].narrow(2, 0, frames).unwrap()).unwrap();
        assert_near(&decoded, &record[&format!("decode.{frames}")], BAR);
    }
}

#[test]
fn a_batch_is_coded_as_its_samples_are_with_and_without_slicing() {
    let (mut vae, record) = (vae(), record());
    for slicing in [false, true] {
        vae.memory.slicing = slicing;
        let posterior = vae.encode(&record["batch.clips"]).unwrap();
        assert_near(&posterior.mean, &record["batch.encode.mean"], BAR);
        assert_near(&posterior.logvar, &record["batch.encode.logvar"], BAR);
        assert_near(
            &vae.decode(&record["batch.latents"]).unwrap(),
            &record["batch.decode"],
            BAR,
        );
    }
}

#[test]
fn tiles_are_laid_and_blended_as_in_diffusers() {
    let (mut vae, record) = (vae(), record());
    let overlapping = Tiling {
        height: Tiles { size: 24, stride: 16 },
        width: Tiles { size: 32, stride: 24 },
        ..Tiling::square(0, 0)
    };
    let default = Tiling::half_of_sample(96, 80);
    vae.memory.tiling = VaeTiling::Always(true);
    for (name, tiling) in [("tiled", overlapping), ("tiled-default", default)] {
        vae.tiling = Some(tiling);
        let posterior = vae.encode(&record[&format!("{name}.clip")]).unwrap();
        assert_near(&posterior.mean, &record[&format!("{name}.encode.mean")], BAR);
        assert_near(&posterior.logvar, &record[&format!("{name}.encode.logvar")], BAR);
        let decoded = vae.decode(&record[&format!("{name}.latents")]).unwrap();
        assert_near(&decoded, &record[&format!("{name}.decode")], BAR);
    }
}

#[test]
fn tiles_of_published_checkpoints_line_up_with_their_latents() {
    assert!(Tiling::half_of_sample(480, 720).lines_up([4, 8]));
    // 16 rows, of which 13 lie before the next tile: no whole number of latents.
    assert!(!Tiling::half_of_sample(32, 48).lines_up([4, 8]));
    // Wan and LTX-Video; the latter's and HunyuanVideo's tiles along the frames.
    assert!(Tiling::square(256, 192).lines_up([4, 8]));
    let square = Tiling::square(512, 448);
    assert!(square.with_frames(16, 8, End::Last).lines_up([8, 32]));
    assert!(!square.with_frames(16, 12, End::First).lines_up([8, 32]));
}

#[test]
fn frames_that_come_batch_by_batch_are_those_that_come_at_once() {
    let (vae, record) = (vae(), record());
    let mut batches = Vec::new();
    vae.decode_batches(&record["latents"], |frames| {
        batches.push(frames);
        Ok::<_, candle_core::Error>(())
    })
    .unwrap();
    let counts: Vec<usize> = batches.iter().map(|batch| batch.dim(2).unwrap()).collect();
    assert_eq!(counts, [9, 8]);
    assert_near(&Tensor::cat(&batches, 2).unwrap(), &record["decode.5"], BAR);
}

#[test]
fn bf16_comes_near() {
    let record = record();
    let vae = Vae::load(&fixtures().join("cogvideox-2b/vae"), DType::BF16, &Device::Cpu).unwrap();
    let clip = record["clip"].to_dtype(DType::BF16).unwrap();
    let posterior = vae.encode(&clip).unwrap();
    assert_eq!(posterior.mean.dtype(), DType::BF16);
    assert_near(&posterior.mean, &record["encode.17.mean"], 3e-2);
    assert_near(&posterior.logvar, &record["encode.17.logvar"], 3e-2);
    let latents = record["latents"].to_dtype(DType::BF16).unwrap();
    assert_near(&vae.decode(&latents).unwrap(), &record["decode.5"], 3e-2);
}

#[test]
fn the_posterior_is_sampled_as_mean_plus_deviation_times_noise() {
    let record = record();
    let posterior = vae().encode(&record["clip"]).unwrap();
    let ones = posterior.mean.ones_like().unwrap();
    let deviation = (posterior.logvar.exp().unwrap().sqrt().unwrap() * 2.0).unwrap();
    let expected = (&posterior.mean + deviation).unwrap();
    assert_near(&posterior.sample(&(ones * 2.0).unwrap()).unwrap(), &expected, 1e-6);
    assert_near(&posterior.mode(), &posterior.mean, 0.0);
}

#[test]
fn half_a_vae_does_half_the_work_and_says_so() {
    let (folder, record) = (fixtures().join("cogvideox-2b/vae"), record());
    let load = |half| Vae::load_half(&folder, half, &Load::new(DType::F32, &Device::Cpu)).unwrap();
    let (encoder, decoder) = (load(Parts::Encoder), load(Parts::Decoder));
    assert!(encoder.encode(&record["clip"]).is_ok());
    assert!(decoder.decode(&record["latents"]).is_ok());
    let complaint = |result: candle_core::Result<Tensor>| result.unwrap_err().to_string();
    assert!(complaint(encoder.decode(&record["latents"])).contains("without its decoder"));
    assert!(complaint(decoder.encode(&record["clip"]).map(|p| p.mean)).contains("without its encoder"));
}

#[test]
fn the_transformer_sees_scaled_latents_and_image_latents_as_the_config_says() {
    let one = Tensor::ones(1, DType::F32, &Device::Cpu).unwrap();
    let value = |x: candle_core::Result<Tensor>| x.unwrap().to_vec1::<f32>().unwrap()[0];
    for (name, scale, image) in [
        ("cogvideox-2b", 1.152584, 1.152584),
        ("cogvideox-1.5-5b-i2v", 0.7, 1.0 / 0.7),
    ] {
        let folder = fixtures().join(name).join("vae");
        let vae = Vae::load_half(&folder, Parts::Encoder, &Load::new(DType::F32, &Device::Cpu)).unwrap();
        for (found, expected) in [
            (vae.config.scale(&one), scale),
            (vae.config.unscale(&one), 1.0 / scale),
            (vae.config.scale_image(&one), image),
        ] {
            assert!((value(found) / expected - 1.0).abs() < 1e-6);
        }
    }
}

/// Returns the error for the fixture's config after `change`.
fn complaint(change: impl Fn(&mut serde_json::Value)) -> String {
    let original = fixtures().join("cogvideox-2b/vae");
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(original.join("config.json")).unwrap();
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut config);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights = "diffusion_pytorch_model.safetensors";
    std::fs::copy(original.join(weights), folder.path().join(weights)).unwrap();
    match Vae::load(folder.path(), DType::F32, &Device::Cpu) {
        Ok(_) => panic!("that should not load"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn a_config_that_says_something_unknown_or_impossible_is_refused() {
    for (key, value, expected) in [
        (
            "temporal_padding",
            serde_json::json!(2),
            "unknown field `temporal_padding`",
        ),
        ("act_fn", "gelu".into(), "act_fn must be silu, found gelu"),
        (
            "_class_name",
            "AutoencoderKLWan".into(),
            "_class_name must be AutoencoderKLCogVideoX",
        ),
        (
            "norm_num_groups",
            4.into(),
            "6 channels do not fall into norm_num_groups 4",
        ),
        ("norm_num_groups", 0.into(), "do not fall into norm_num_groups 0"),
        (
            "block_out_channels",
            serde_json::json!([]),
            "block_out_channels must have 1 to 16 entries",
        ),
        ("latents_mean", serde_json::json!([0.0]), "latents_mean must be null"),
        (
            "latent_channels",
            8.into(),
            "should be [16, 6, 3, 3, 3] by config.json, but is [8, 6, 3, 3, 3]",
        ),
        ("layers_per_block", 0.into(), "have no place in this model"),
        ("layers_per_block", 2.into(), "is missing"),
    ] {
        let said = complaint(|config| config[key] = value.clone());
        assert!(said.contains(expected), "{key}: {said}");
    }
}

#[test]
fn tensors_of_the_wrong_shape_are_refused() {
    let mut vae = vae();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    assert!(vae.encode(&zeros(&[1, 4, 1, 16, 16])).is_err());
    assert!(vae.encode(&zeros(&[3, 1, 16, 16])).is_err());
    assert!(vae.encode(&zeros(&[1, 3, 1, 2, 16])).is_err(), "two rows leave nothing");
    assert!(vae.decode(&zeros(&[1, 3, 1, 2, 2])).is_err());
    vae.tiling = Some(Tiling::square(24, 0));
    vae.memory.tiling = VaeTiling::Always(true);
    assert!(vae.encode(&zeros(&[1, 3, 1, 48, 48])).is_err());
}
