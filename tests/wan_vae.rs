//! The Wan 2.1 autoencoder against diffusers.
//!
//! `scripts/fixtures/make_wan.py` makes the fixtures, described in `scripts/fixtures/wan/vae.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use vtrain::diffusers_config::Config as _;
use vtrain::models::wan::vae::{Config, Parts, Vae};
use vtrain::nn::Load;

use super::cogvideox_vae::assert_near;

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const BAR: f64 = 1e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wan")
}

fn folder() -> PathBuf {
    fixtures().join("wan-2.1-t2v/vae")
}

fn record() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join("vae.safetensors"), &Device::Cpu).unwrap()
}

fn vae() -> Vae {
    Vae::load(&folder(), DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn clips_of_1_5_9_and_17_frames_encode_as_in_diffusers() {
    let (vae, record) = (vae(), record());
    for (key, frames) in [
        ("clip", 1),
        ("clip", 5),
        ("clip", 9),
        ("clip", 17),
        ("batch", 1),
        ("batch", 5),
    ] {
        let clip = record[&format!("{key}.clip")].narrow(2, 0, frames).unwrap();
        let posterior = vae.encode(&clip).unwrap();
        assert_near(&posterior.mean, &record[&format!("{key}.encode.{frames}.mean")], BAR);
        assert_near(
            &posterior.logvar,
            &record[&format!("{key}.encode.{frames}.logvar")],
            BAR,
        );
    }
}

#[test]
fn latents_of_1_2_3_and_5_frames_decode_as_in_diffusers() {
    let (vae, record) = (vae(), record());
    for (key, frames) in [
        ("clip", 1),
        ("clip", 2),
        ("clip", 3),
        ("clip", 5),
        ("batch", 1),
        ("batch", 2),
    ] {
        let latents = record[&format!("{key}.latents")].narrow(2, 0, frames).unwrap();
        let decoded = vae.decode(&latents).unwrap();
        let expected = record[&format!("{key}.decode")].narrow(2, 0, 4 * frames - 3).unwrap();
        assert_near(&decoded, &expected, BAR);
    }
}

#[test]
fn frames_come_piece_by_piece_and_are_those_that_come_at_once() {
    let (vae, record) = (vae(), record());
    let mut pieces = Vec::new();
    vae.decode_batches(&record["clip.latents"], &mut |frames| {
        pieces.push(frames);
        Ok::<_, candle_core::Error>(())
    })
    .unwrap();
    let counts: Vec<usize> = pieces.iter().map(|piece| piece.dim(2).unwrap()).collect();
    assert_eq!(counts, [1, 4, 4, 4, 4]);
    let whole = vae.decode(&record["clip.latents"]).unwrap();
    assert_near(&Tensor::cat(&pieces, 2).unwrap(), &whole, 0.0);
}

#[test]
fn decoding_ends_where_frames_are_refused() {
    let (vae, record) = (vae(), record());
    let mut count = 0;
    let said = vae.decode_batches(&record["clip.latents"], &mut |_| {
        count += 1;
        anyhow::ensure!(count < 2, "the disk is full");
        Ok(())
    });
    assert_eq!((count, said.unwrap_err().to_string().as_str()), (2, "the disk is full"));
}

#[test]
fn bf16_comes_near() {
    let record = record();
    let vae = Vae::load(&folder(), DType::BF16, &Device::Cpu).unwrap();
    let posterior = vae.encode(&record["clip.clip"].to_dtype(DType::BF16).unwrap()).unwrap();
    assert_eq!(posterior.mean.dtype(), DType::BF16);
    assert_near(&posterior.mean, &record["clip.encode.17.mean"], 3e-2);
    let latents = record["clip.latents"].to_dtype(DType::BF16).unwrap();
    assert_near(&vae.decode(&latents).unwrap(), &record["clip.decode"], 3e-2);
}

#[test]
fn the_transformer_sees_latents_normalised_channel_by_channel() {
    let (config, record) = (Config::load(&folder()).unwrap(), record());
    let latents = &record["clip.latents"];
    assert_near(&config.normalize(latents).unwrap(), &record["normalized"], 1e-6);
    assert_near(&config.denormalize(latents).unwrap(), &record["denormalized"], 1e-6);
    let sizes = (
        config.spatial_compression(),
        config.temporal_compression(),
        config.latent_channels(),
    );
    assert_eq!(sizes, (8, 4, 4));
}

#[test]
fn half_a_vae_does_half_the_work_and_says_so() {
    let record = record();
    let load = |half| Vae::load_half(&folder(), half, &Load::new(DType::F32, &Device::Cpu)).unwrap();
    let (encoder, decoder) = (load(Parts::Encoder), load(Parts::Decoder));
    let clip = record["clip.clip"].narrow(2, 0, 1).unwrap();
    assert!(encoder.encode(&clip).is_ok());
    assert!(decoder.decode(&record["clip.latents"]).is_ok());
    let said = encoder.decode(&record["clip.latents"]).unwrap_err().to_string();
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
        ([1, 3, 1, 0, 16], "clips (B, 3, F, H, W) were expected"),
        ([1, 3, 0, 16, 16], "1, 5, 9, ... frames (4 n + 1), not 0"),
        ([1, 3, 4, 16, 16], "1, 5, 9, ... frames (4 n + 1), not 4"),
        ([1, 3, 7, 16, 16], "1, 5, 9, ... frames (4 n + 1), not 7"),
        ([1, 3, 1, 4, 16], "cannot read"),
    ] {
        let said = vae.encode(&zeros(&shape)).unwrap_err().to_string();
        assert!(said.contains(expected), "{shape:?}: {said}");
    }
    for shape in [[1, 3, 1, 2, 2], [1, 4, 0, 2, 2], [1, 4, 1, 2, 0]] {
        let said = vae.decode(&zeros(&shape)).unwrap_err().to_string();
        assert!(said.contains("latents (B, 4, f, h, w) were expected"), "{said}");
    }
}

#[test]
fn published_configs_and_those_of_wan_2_2_that_say_the_same_are_read() {
    // Wan-AI/Wan2.1-T2V-1.3B-Diffusers, vae/config.json.
    let published = json!({
        "_class_name": "AutoencoderKLWan", "_diffusers_version": "0.33.0.dev0", "attn_scales": [], "base_dim": 96,
        "dim_mult": [1, 2, 4, 4], "dropout": 0.0, "num_res_blocks": 2, "temperal_downsample": [false, true, true],
        "z_dim": 16, "latents_mean": vec![0.5; 16], "latents_std": vec![2.0; 16],
    });
    let mut newer = published.clone();
    for (key, value) in [
        ("is_residual", json!(false)),
        ("patch_size", json!(null)),
        ("decoder_base_dim", json!(96)),
        ("in_channels", json!(3)),
        ("out_channels", json!(3)),
        ("scale_factor_temporal", json!(4)),
        ("scale_factor_spatial", json!(8)),
    ] {
        newer[key] = value;
    }
    for config in [published, newer] {
        let config = Config::parse(&config.to_string()).unwrap();
        assert_eq!((config.latent_channels(), config.latents_std[15]), (16, 2.0));
    }
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
    for (key, value, expected) in [
        ("mystery", json!(2), "unknown field `mystery`"),
        (
            "_class_name",
            json!("AutoencoderKL"),
            "_class_name must be AutoencoderKLWan, found \"AutoencoderKL\"",
        ),
        ("base_dim", json!(0), "base_dim must lie between 2 and 4096, found 0"),
        ("base_dim", json!(u64::MAX), "base_dim must lie between 2 and 4096"),
        ("z_dim", json!(0), "z_dim must lie between 1 and 4096, found 0"),
        (
            "num_res_blocks",
            json!(0),
            "num_res_blocks must lie between 1 and 64, found 0",
        ),
        ("dim_mult", json!([]), "dim_mult must be 1 to 8 entries, found []"),
        (
            "dim_mult",
            json!([1, 2, 0, 4]),
            "dim_mult must lie between 1 and 64, found 0",
        ),
        (
            "temperal_downsample",
            json!([true]),
            "temperal_downsample must be one entry shorter",
        ),
        (
            "temperal_downsample",
            json!([true, true, true]),
            "two times true at most, found [true,true,true]",
        ),
        (
            "latents_mean",
            json!([0.0]),
            "latents_mean must be z_dim numbers, found [0.0]",
        ),
        (
            "latents_std",
            json!([1.0, 1.0, 0.0, 1.0]),
            "latents_std must be z_dim numbers above 0",
        ),
        ("attn_scales", json!([1.0]), "attn_scales must be []"),
        ("is_residual", json!(true), "is_residual must be false, as in Wan 2.1"),
        ("patch_size", json!(2), "patch_size must be null"),
        (
            "decoder_base_dim",
            json!(256),
            "decoder_base_dim must be 3, as in Wan 2.1, found 256",
        ),
        ("in_channels", json!(12), "in_channels must be 3"),
        ("out_channels", json!(12), "out_channels must be 3"),
        ("scale_factor_temporal", json!(8), "scale_factor_temporal must be 4"),
        ("scale_factor_spatial", json!(16), "scale_factor_spatial must be 8"),
        ("num_res_blocks", json!(2), "is missing"),
        (
            "base_dim",
            json!(4),
            "should be [4, 3, 3, 3, 3] by config.json, but is [3, 3, 3, 3, 3]",
        ),
    ] {
        let said = complaint(|config| {
            config[key] = value.clone();
            // Newer diffusers write it out.
            if key == "base_dim" {
                config["decoder_base_dim"] = json!(null);
            }
        });
        assert!(said.contains(expected), "{key}: {said}");
    }
}

#[test]
fn tensors_that_are_missing_or_one_too_many_are_named() {
    for (from, to, expected) in [
        (
            "decoder.up_blocks.1.upsamplers.0.time_conv.bias",
            None,
            "time_conv.bias [24] is missing",
        ),
        (
            "encoder.mid_block.attentions.0.norm.gamma",
            None,
            "attentions.0.norm.gamma [12, 1, 1] is missing",
        ),
        (
            "quant_conv.bias",
            Some("quant_conv.scale"),
            "quant_conv.bias [8] is missing",
        ),
        (
            "",
            Some("encoder.down_blocks.9.norm1.gamma"),
            "encoder.down_blocks.9.norm1.gamma in",
        ),
    ] {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(folder().join("config.json"), copy.path().join("config.json")).unwrap();
        let mut tensors = candle_core::safetensors::load(folder().join(WEIGHTS), &Device::Cpu).unwrap();
        let tensor = match from {
            "" => Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap(),
            from => tensors.remove(from).unwrap(),
        };
        if let Some(to) = to {
            tensors.insert(to.into(), tensor);
        }
        candle_core::safetensors::save(&tensors, copy.path().join(WEIGHTS)).unwrap();
        let said = match Vae::load(copy.path(), DType::F32, &Device::Cpu) {
            Ok(_) => panic!("that should not load"),
            Err(error) => format!("{error:#}"),
        };
        assert!(said.contains(expected), "{from}: {said}");
    }
}
