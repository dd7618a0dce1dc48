//! The autoencoders in bf16 as a GPU computes them, compared with f32: with features whose mean is five times their
//! deviation.
//!
//! Bounds are between the error of rounding once and that of rounding tables, SiLU and sums of convolutions at each
//! step.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;
use vtrain::diffusers_config::Config as _;
use vtrain::models::{cogvideox, hunyuan_video, ltx_video, wan};
use vtrain::nn::{Load, Weights};
use vtrain::rng::Rng;

use super::cogvideox_vae::relative_error;

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// |mean| / deviation of what the norms see, about.
const RATIO: f64 = 5.0;
/// Mean square of SiLU of a standard normal number.
const SILU_SQUARE: f64 = 0.356;

/// A checkpoint whose convolutions in front of norms add `RATIO` deviations to what they give, in numbers that bf16 has.
fn shifted(checkpoint: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let from = fixture(checkpoint);
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut tensors = candle_core::safetensors::load(from.join(WEIGHTS), &Device::Cpu).unwrap();
    let before_norms = |name: &str| {
        ["conv_in", "conv1", "conv2"]
            .iter()
            .any(|part| name.split('.').any(|step| step == *part))
    };
    let biases: Vec<String> = tensors
        .keys()
        .filter(|name| name.ends_with(".bias") && before_norms(name))
        .cloned()
        .collect();
    assert!(biases.len() > 5, "{biases:?}");
    for name in biases {
        let weight = wide(&tensors[&name.replace(".bias", ".weight")]);
        let squares = weight.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let deviation = (SILU_SQUARE * f64::from(squares) / weight.dim(0).unwrap() as f64).sqrt();
        let bias = (wide(&tensors[&name]) + RATIO * deviation).unwrap();
        tensors.insert(name, bias);
    }
    let rounded: HashMap<String, Tensor> = tensors
        .into_iter()
        .map(|(name, tensor)| (name, wide(&tensor.to_dtype(DType::BF16).unwrap())))
        .collect();
    candle_core::safetensors::save(&rounded, folder.path().join(WEIGHTS)).unwrap();
    folder
}

fn fixture(checkpoint: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(checkpoint)
        .join("vae")
}

fn wide(x: &Tensor) -> Tensor {
    x.to_dtype(DType::F32).unwrap()
}

/// Standard normal numbers that bf16 has.
fn randn(seed: u64, shape: &[usize]) -> Tensor {
    let numbers = Rng::new(seed).randn(shape.iter().product());
    let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
    wide(&tensor.to_dtype(DType::BF16).unwrap())
}

/// Encodes and decodes, given: the weights' folder and type, whether to compute like a GPU, a clip, latents.
type Code = fn(&Path, Weights, &Tensor, &Tensor) -> [Tensor; 2];

/// The largest errors of encoding and decoding in bf16 that are allowed.
fn check(checkpoint: &str, [clip, latents]: [&[usize]; 2], code: Code, most: [f64; 2]) {
    let folder = shifted(checkpoint);
    let (clip, latents) = (randn(1, clip).tanh().unwrap(), randn(2, latents));
    let clip = wide(&clip.to_dtype(DType::BF16).unwrap());
    let read = |load: &Load| Weights::read(&folder.path().into(), load).unwrap();
    let open = |dtype| read(&Load::new(dtype, &Device::Cpu));
    let composed = |dtype| read(&Load::new(dtype, &Device::Cpu).with_reference_ops());
    let expected = code(folder.path(), open(DType::F32), &clip, &latents);
    // The convolutions for other devices are those of the CPU.
    let by_candle = code(folder.path(), composed(DType::F32), &clip, &latents);
    for (found, expected) in by_candle.iter().zip(&expected) {
        let error = relative_error(found, expected);
        assert!(error <= 1e-4, "{checkpoint} in f32: {error:.1e}");
    }
    let narrow = code(folder.path(), composed(DType::BF16), &clip, &latents);
    for (((what, found), expected), most) in ["encode", "decode"].iter().zip(&narrow).zip(&expected).zip(most) {
        assert_eq!(found.dtype(), DType::BF16);
        let error = relative_error(found, expected);
        println!("{checkpoint} {what}: {error:.2e} of {most:.1e}");
        assert!(error <= most, "{checkpoint} {what}: {error:.2e}, more than {most:.1e}");
    }
}

#[test]
fn cogvideox_in_bf16_comes_near_f32() {
    let code: Code = |folder, weights, clip, latents| {
        let vae = cogvideox::vae::Vae::read(folder, cogvideox::vae::Parts::Both, weights).unwrap();
        [vae.encode(clip).unwrap().mean, vae.decode(latents).unwrap()]
    };
    let shapes: [&[usize]; 2] = [&[1, 3, 9, 32, 48], &[1, 4, 3, 4, 6]];
    check("cogvideox/cogvideox-2b", shapes, code, [1.5e-2, 1.03e-2]);
}

#[test]
fn ltx_video_in_bf16_comes_near_f32() {
    let code: Code = |folder, weights, clip, latents| {
        let vae = ltx_video::vae::Vae::read(folder, ltx_video::vae::Parts::Both, weights).unwrap();
        let timestep = Tensor::new(&[0.05f32], &Device::Cpu).unwrap();
        let timestep = vae.config.timestep_conditioning.then_some(&timestep);
        let decoded = vae.decode(latents, timestep, &mut Rng::new(3)).unwrap();
        [vae.encode(clip).unwrap().mean, decoded]
    };
    for (version, most) in [
        ("ltx-0.9.0", [3.7e-3, 4.6e-3]),
        ("ltx-0.9.1", [6e-3, 9.5e-3]),
        ("ltx-0.9.5", [6.2e-3, 5.2e-3]),
    ] {
        let folder = fixture(&format!("ltx_video/{version}"));
        let config = ltx_video::vae::Config::load(&folder).unwrap();
        let (time, space) = (config.temporal_compression(), config.spatial_compression());
        let clip = [1, 3, time + 1, 2 * space, 2 * space];
        let latents = [1, config.latent_channels, 2, 2, 3];
        check(&format!("ltx_video/{version}"), [&clip, &latents], code, most);
    }
}

#[test]
fn wan_in_bf16_comes_near_f32() {
    let code: Code = |folder, weights, clip, latents| {
        let vae = wan::vae::Vae::read(folder, wan::vae::Parts::Both, weights).unwrap();
        [vae.encode(clip).unwrap().mean, vae.decode(latents).unwrap()]
    };
    let config = wan::vae::Config::load(&fixture("wan/wan-2.1-t2v")).unwrap();
    let latents = [1, config.z_dim, 3, 4, 6];
    check(
        "wan/wan-2.1-t2v",
        [&[1, 3, 9, 32, 48], &latents],
        code,
        [7.4e-3, 9.4e-3],
    );
}

#[test]
fn hunyuan_video_in_bf16_comes_near_f32() {
    let code: Code = |folder, weights, clip, latents| {
        let vae = hunyuan_video::vae::Vae::read(folder, hunyuan_video::vae::Parts::Both, weights).unwrap();
        [vae.encode(clip).unwrap().mean, vae.decode(latents).unwrap()]
    };
    let shapes: [&[usize]; 2] = [&[1, 3, 9, 32, 48], &[1, 5, 3, 4, 6]];
    // 8.7e-2 where attention rounds its weights to bf16 as well, as tiles and GPUs do, and 8.3e-2 else.
    check("hunyuan_video/hunyuan-t2v", shapes, code, [3.1e-2, 9.1e-2]);
}
