//! The LTX-Video autoencoders against diffusers: 0.9.0, 0.9.1 and 0.9.5.
//!
//! The Python that made the numbers: `scripts/fixtures/make_ltx_video.py`, `scripts/fixtures/ltx_video/vae.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use vtrain::diffusers_config::Config as _;
use vtrain::diffusion::posterior::Posterior;
use vtrain::models::ltx_video::vae::{Config, Parts, Vae};
use vtrain::nn::Load;
use vtrain::rng::Rng;

const VERSIONS: [&str; 3] = ["ltx-0.9.0", "ltx-0.9.1", "ltx-0.9.5"];
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// Stride of the recorded rows and columns of decoded frames.
const KEPT: usize = 5;
const BAR: f64 = 1e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx_video")
}

fn folder(version: &str) -> PathBuf {
    fixtures().join(version).join("vae")
}

fn record() -> HashMap<String, Tensor> {
    let mut record = candle_core::safetensors::load(fixtures().join("vae.safetensors"), &Device::Cpu).unwrap();
    let clip = record["clip"].to_dtype(DType::F32).unwrap();
    record.insert("clip".into(), clip);
    record
}

fn vae(version: &str) -> Vae {
    Vae::load(&folder(version), DType::F32, &Device::Cpu).unwrap()
}

/// max |a - b| / max |b|
#[track_caller]
fn assert_near(a: &Tensor, b: &Tensor, bar: f64) {
    assert_eq!(a.dims(), b.dims());
    let largest = |x: Tensor| {
        let x = x.to_dtype(DType::F64).unwrap().abs().unwrap();
        x.flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap()
    };
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let error = largest((wide(a) - wide(b)).unwrap()) / largest(wide(b));
    assert!(
        error <= bar,
        "the relative error is {error:e}, which is more than {bar:e}"
    );
}

#[track_caller]
fn assert_encoded(posterior: &Posterior, record: &HashMap<String, Tensor>, key: &str) {
    assert_near(&posterior.mean, &record[&format!("{key}.mean")], BAR);
    assert_near(&posterior.logvar, &record[&format!("{key}.logvar")], BAR);
}

/// Returns the recorded part of decoded frames.
pub fn kept(frames: &Tensor) -> Tensor {
    let every = |x: &Tensor, dim: usize| {
        let places: Vec<u32> = (0..x.dim(dim).unwrap() as u32).step_by(KEPT).collect();
        x.index_select(&Tensor::new(places, &Device::Cpu).unwrap(), dim)
            .unwrap()
    };
    every(&every(frames, 3), 4)
}

fn decode(vae: &Vae, latents: &Tensor, timesteps: &Tensor) -> Tensor {
    let timesteps = vae.config.timestep_conditioning.then_some(timesteps);
    vae.decode(latents, timesteps, &mut Rng::new(42)).unwrap()
}

#[test]
fn clips_encode_as_in_diffusers() {
    let record = record();
    let clip = &record["clip"];
    let frames = |first, count| clip.narrow(2, first, count).unwrap();
    for version in VERSIONS {
        let vae = vae(version);
        assert_eq!(
            [
                vae.config.spatial_compression(),
                vae.config.temporal_compression(),
                vae.config.latent_channels
            ],
            [32, 8, 8]
        );
        let one = frames(0, 1).narrow(4, 0, 32).unwrap();
        assert_encoded(&vae.encode(&one).unwrap(), &record, &format!("{version}.encode.1"));
        assert_encoded(&vae.encode(clip).unwrap(), &record, &format!("{version}.encode.17"));
        let pair = Tensor::cat(&[frames(0, 9), frames(8, 9)], 0).unwrap();
        assert_encoded(&vae.encode(&pair).unwrap(), &record, &format!("{version}.encode.pair"));
    }
}

#[test]
fn latents_decode_as_in_diffusers_with_timesteps_and_noise_where_there_are_some() {
    let record = record();
    let (latents, timesteps) = (&record["latents"], &record["timesteps"]);
    for version in VERSIONS {
        let vae = vae(version);
        let one = latents.narrow(0, 0, 1).unwrap().narrow(2, 0, 1).unwrap();
        let decoded = decode(&vae, &one, &timesteps.narrow(0, 0, 1).unwrap());
        assert_eq!(decoded.dims(), [1, 3, 1, 32, 64]);
        assert_near(&kept(&decoded), &record[&format!("{version}.decode.1")], BAR);
        let decoded = decode(&vae, latents, timesteps);
        assert_eq!(decoded.dims(), [2, 3, 17, 32, 64]);
        assert_near(&kept(&decoded), &record[&format!("{version}.decode.3")], BAR);
    }
}

/// A folder with the fixture's weights and a changed config.
fn changed(version: &str, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(self::folder(version).join("config.json")).unwrap();
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut config);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(self::folder(version).join(WEIGHTS), folder.path().join(WEIGHTS)).unwrap();
    folder
}

#[test]
fn either_half_may_be_causal_or_not() {
    let record = record();
    let latents = record["latents"].narrow(0, 0, 1).unwrap();
    let timesteps = record["timesteps"].narrow(0, 0, 1).unwrap();
    for version in VERSIONS {
        let folder = changed(version, |config| {
            config["encoder_causal"] = false.into();
            config["decoder_causal"] = true.into();
        });
        let vae = Vae::load(folder.path(), DType::F32, &Device::Cpu).unwrap();
        assert_encoded(
            &vae.encode(&record["clip"]).unwrap(),
            &record,
            &format!("{version}.turned.encode"),
        );
        let decoded = decode(&vae, &latents, &timesteps);
        assert_near(&kept(&decoded), &record[&format!("{version}.turned.decode")], BAR);
    }
}

#[test]
fn the_transformer_sees_normalised_latents() {
    let record = record();
    for version in VERSIONS {
        let folder = changed(version, |config| config["scaling_factor"] = 0.7.into());
        let vae = Vae::load_half(folder.path(), Parts::Encoder, &Load::new(DType::F32, &Device::Cpu)).unwrap();
        let latents = &record["latents"];
        assert_near(
            &vae.statistics.normalize(latents).unwrap(),
            &record[&format!("{version}.normalized")],
            1e-6,
        );
        assert_near(
            &vae.statistics.denormalize(latents).unwrap(),
            &record[&format!("{version}.denormalized")],
            1e-6,
        );
    }
}

#[test]
fn bf16_comes_near() {
    let record = record();
    let vae = Vae::load(&folder("ltx-0.9.1"), DType::BF16, &Device::Cpu).unwrap();
    let posterior = vae.encode(&record["clip"]).unwrap();
    assert_eq!(posterior.mean.dtype(), DType::BF16);
    assert_near(&posterior.mean, &record["ltx-0.9.1.encode.17.mean"], 3e-2);
    let narrow = |key: &str| record[key].to_dtype(DType::BF16).unwrap();
    let decoded = decode(&vae, &narrow("latents"), &narrow("timesteps"));
    assert_eq!(decoded.dtype(), DType::BF16);
    assert_near(&kept(&decoded), &record["ltx-0.9.1.decode.3"], 5e-2);
}

/// Why something that gives a tensor does not.
#[track_caller]
fn refused(result: candle_core::Result<Tensor>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn half_a_vae_does_half_the_work_and_says_so() {
    let record = record();
    let load = |half| Vae::load_half(&folder("ltx-0.9.0"), half, &Load::new(DType::F32, &Device::Cpu)).unwrap();
    let (encoder, decoder) = (load(Parts::Encoder), load(Parts::Decoder));
    assert!(encoder.encode(&record["clip"]).is_ok());
    let mut rng = Rng::new(0);
    assert!(decoder.decode(&record["latents"], None, &mut rng).is_ok());
    let said = refused(encoder.decode(&record["latents"], None, &mut rng));
    assert!(said.contains("without its decoder"));
    assert!(refused(decoder.encode(&record["clip"]).map(|p| p.mean)).contains("without its encoder"));
}

#[test]
fn timesteps_are_for_decoders_that_know_them() {
    let record = record();
    let (latents, timesteps) = (&record["latents"], &record["timesteps"]);
    let mut rng = Rng::new(0);
    let said = refused(vae("ltx-0.9.0").decode(latents, Some(timesteps), &mut rng));
    assert!(said.contains("takes no timestep"), "{said}");
    let said = refused(vae("ltx-0.9.5").decode(latents, None, &mut rng));
    assert!(said.contains("needs a timestep"), "{said}");
    let one = timesteps.narrow(0, 0, 1).unwrap();
    let said = refused(vae("ltx-0.9.5").decode(latents, Some(&one), &mut rng));
    assert!(said.contains("2 timesteps were expected"), "{said}");
}

#[test]
fn tensors_of_the_wrong_shape_are_refused() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for version in VERSIONS {
        let vae = vae(version);
        for shape in [
            &[1, 4, 1, 32, 32][..],
            &[3, 1, 32, 32],
            &[0, 3, 1, 32, 32],
            &[1, 3, 0, 32, 32],
            &[1, 3, 8, 32, 32],
            &[1, 3, 1, 0, 32],
            &[1, 3, 1, 32, 48],
        ] {
            assert!(vae.encode(&zeros(shape)).is_err(), "{shape:?}");
        }
        for shape in [&[1, 7, 1, 1, 1][..], &[1, 8, 0, 1, 1], &[0, 8, 1, 1, 1], &[8, 1, 1, 1]] {
            assert!(vae.decode(&zeros(shape), None, &mut Rng::new(0)).is_err(), "{shape:?}");
        }
    }
}

#[test]
fn a_config_of_the_first_release_says_little_and_means_the_defaults() {
    let config =
        Config::parse(r#"{"_class_name": "AutoencoderKLLTXVideo", "_diffusers_version": "0.32.0.dev0"}"#).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!([config.spatial_compression(), config.temporal_compression()], [32, 8]);
}

/// Returns the error for a fixture with another value of a key.
fn complaint(version: &str, key: &str, value: &Value) -> String {
    let folder = changed(version, |config| config[key] = value.clone());
    match Vae::load(folder.path(), DType::F32, &Device::Cpu) {
        Ok(_) => panic!("{key} {value} should not load"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn a_config_that_says_something_unknown_or_impossible_is_refused() {
    for (version, key, value, expected) in [
        (
            "ltx-0.9.0",
            "upsample_type",
            json!("spatial"),
            "unknown field `upsample_type`",
        ),
        (
            "ltx-0.9.0",
            "_class_name",
            json!("AutoencoderKLWan"),
            "_class_name must be AutoencoderKLLTXVideo",
        ),
        (
            "ltx-0.9.0",
            "down_block_types",
            json!(["LTX2VideoDownBlock3D"]),
            "unknown variant `LTX2VideoDownBlock3D`",
        ),
        (
            "ltx-0.9.0",
            "down_block_types",
            json!([]),
            "down_block_types must have 1 entries, found 0",
        ),
        (
            "ltx-0.9.0",
            "layers_per_block",
            json!([1, 1]),
            "layers_per_block must have 5 entries",
        ),
        (
            "ltx-0.9.0",
            "block_out_channels",
            json!([4, 6, 0, 8]),
            "block_out_channels must lie between 1 and 65536",
        ),
        (
            "ltx-0.9.0",
            "latent_channels",
            json!(1u64 << 60),
            "latent_channels must lie between",
        ),
        (
            "ltx-0.9.0",
            "patch_size_t",
            json!(2),
            "patch_size_t must be 1, as in all checkpoints, found 2",
        ),
        (
            "ltx-0.9.0",
            "scaling_factor",
            json!(0.0),
            "scaling_factor must be a number above 0",
        ),
        (
            "ltx-0.9.0",
            "timestep_conditioning",
            json!(true),
            "up block 2 does not fit",
        ),
        (
            "ltx-0.9.0",
            "decoder_inject_noise",
            json!([true, true, true, true, true]),
            "up block 2 does not fit",
        ),
        (
            "ltx-0.9.0",
            "upsample_factor",
            json!([1, 1, 1, 2]),
            "up block 0 does not fit",
        ),
        (
            "ltx-0.9.0",
            "spatio_temporal_scaling",
            json!([true, true, false, false]),
            "spatial_compression_ratio is 16",
        ),
        (
            "ltx-0.9.1",
            "upsample_factor",
            json!([2, 2, 0]),
            "upsample_factor must lie between 1 and 8, found 0",
        ),
        (
            "ltx-0.9.1",
            "upsample_residual",
            json!([true, true, true]),
            "up block 2 does not fit",
        ),
        (
            "ltx-0.9.5",
            "downsample_type",
            json!(["spatial", "half", "conv", "conv"]),
            "unknown variant `half`",
        ),
        (
            "ltx-0.9.5",
            "block_out_channels",
            json!([2, 4, 8, 9, 16]),
            "block 2 can not make 9 channels of 8",
        ),
        (
            "ltx-0.9.5",
            "temporal_compression_ratio",
            json!(4),
            "temporal_compression_ratio is 4, but",
        ),
        (
            "ltx-0.9.0",
            "latent_channels",
            json!(4),
            "latents_mean should be [4] by config.json, but is [8]",
        ),
        (
            "ltx-0.9.0",
            "layers_per_block",
            json!([0, 1, 1, 1, 1]),
            "encoder.down_blocks.0.resnets.0.conv1.conv.bias",
        ),
        (
            "ltx-0.9.0",
            "decoder_layers_per_block",
            json!([2, 1, 2, 1, 1]),
            "decoder.up_blocks.3.resnets.1.conv1",
        ),
        (
            "ltx-0.9.1",
            "decoder_inject_noise",
            json!([true, true, true, true]),
            "per_channel_scale1 [16, 1, 1] is missing",
        ),
        (
            "ltx-0.9.5",
            "timestep_conditioning",
            json!(false),
            "have no place in this model",
        ),
    ] {
        let said = complaint(version, key, &value);
        assert!(said.contains(expected), "{version} {key}: {said}");
    }
}

#[test]
fn missing_misshapen_and_impossible_tensors_are_refused_by_name() {
    let tensors = candle_core::safetensors::load(folder("ltx-0.9.1").join(WEIGHTS), &Device::Cpu).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for (name, tensor, expected) in [
        ("latents_std", None, "latents_std [8] is missing"),
        ("latents_std", Some(zeros(&[8])), "latents_std must be above 0"),
        (
            "decoder.timestep_scale_multiplier",
            None,
            "decoder.timestep_scale_multiplier [] is missing",
        ),
        (
            "decoder.up_blocks.0.upsamplers.0.conv.conv.weight",
            Some(zeros(&[64, 16, 3, 3, 1])),
            "should be [64, 16, 3, 3, 3] by config.json, but is [64, 16, 3, 3, 1]",
        ),
        (
            "encoder.down_blocks.0.conv_out.norm3.weight",
            Some(zeros(&[5])),
            "encoder.down_blocks.0.conv_out.norm3.weight should be [4]",
        ),
        ("encoder.left_over", Some(zeros(&[1])), "encoder.left_over"),
    ] {
        let folder = changed("ltx-0.9.1", |_| ());
        let mut tensors = tensors.clone();
        match tensor {
            Some(tensor) => tensors.insert(name.to_string(), tensor),
            None => tensors.remove(name),
        };
        candle_core::safetensors::save(&tensors, folder.path().join(WEIGHTS)).unwrap();
        let Err(error) = Vae::load(folder.path(), DType::F32, &Device::Cpu) else {
            panic!("{name} should be complained of");
        };
        assert!(format!("{error:#}").contains(expected), "{name}: {error:#}");
    }
}
