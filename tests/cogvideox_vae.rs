//! The CogVideoX autoencoder against diffusers, and its convolution against a loop that can't be wrong.
//!
//! The fixtures and what is in them: `tests/fixtures/cogvideox/README.md`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use vtrain::models::cogvideox::vae::{Half, Tiling, Vae};
use vtrain::nn::conv3d::{Conv3d, Geometry, Input, Isa, Modulation, Resample};

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
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let norm = |x: Tensor| {
        let sum = x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap();
        sum.to_scalar::<f64>().unwrap().sqrt()
    };
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    norm((wide(a) - wide(b)).unwrap()) / norm(wide(b)).max(1e-30)
}

#[track_caller]
fn assert_near(a: &Tensor, b: &Tensor, bar: f64) {
    let error = relative_error(a, b);
    assert!(error <= bar, "the relative error is {error:e}, which is more than {bar:e}");
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
        vae.slicing = slicing;
        let posterior = vae.encode(&record["batch.clips"]).unwrap();
        assert_near(&posterior.mean, &record["batch.encode.mean"], BAR);
        assert_near(&posterior.logvar, &record["batch.encode.logvar"], BAR);
        assert_near(&vae.decode(&record["batch.latents"]).unwrap(), &record["batch.decode"], BAR);
    }
}

#[test]
fn tiles_are_laid_and_blended_as_in_diffusers() {
    let (mut vae, record) = (vae(), record());
    for (name, (height, width)) in [("tiled", (24, 32)), ("tiled-default", (48, 40))] {
        vae.tiling = Some(Tiling {
            sample_min_height: height,
            sample_min_width: width,
            ..vae.default_tiling()
        });
        let posterior = vae.encode(&record[&format!("{name}.clip")]).unwrap();
        assert_near(&posterior.mean, &record[&format!("{name}.encode.mean")], BAR);
        assert_near(&posterior.logvar, &record[&format!("{name}.encode.logvar")], BAR);
        let decoded = vae.decode(&record[&format!("{name}.latents")]).unwrap();
        assert_near(&decoded, &record[&format!("{name}.decode")], BAR);
    }
}
