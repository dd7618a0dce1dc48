//! Image embeddings against transformers. `tests/fixtures/wan/clip.safetensors` is written by
//! `scripts/fixtures/make_wan.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors};
use vtrain::nn::Weights;
use vtrain::vision::clip::{Activation, Config};
use vtrain::vision::{ClipVision, Preprocessor};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wan")
}

fn answers() -> HashMap<String, Tensor> {
    safetensors::load(fixtures().join("clip.safetensors"), &Device::Cpu).unwrap()
}

fn encoder(dtype: DType) -> ClipVision {
    let folder = fixtures().join("wan-2.1-i2v/image_encoder");
    let config = Config::load(&folder.join("config.json")).unwrap();
    ClipVision::new(&config, Weights::open(&folder, dtype, &Device::Cpu).unwrap()).unwrap()
}

fn preprocessor() -> Preprocessor {
    Preprocessor::load(&fixtures().join("wan-2.1-i2v/image_processor")).unwrap()
}

/// A picture's bytes and size.
fn picture(picture: &Tensor) -> (Vec<u8>, (usize, usize)) {
    let (height, width, _) = picture.dims3().unwrap();
    (picture.flatten_all().unwrap().to_vec1().unwrap(), (height, width))
}

fn most(x: &Tensor) -> f32 {
    x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

/// max |a - b| / max |b|
fn relative_error(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    most(&(a.to_dtype(DType::F32).unwrap() - b).unwrap()) / most(b)
}

#[test]
fn the_last_block_but_one_answers_as_in_transformers() {
    let answers = answers();
    for (dtype, bound) in [(DType::F32, 5e-6), (DType::BF16, 3e-2)] {
        let encoder = encoder(dtype);
        for i in 0..5 {
            let got = encoder.forward(&answers[&format!("{i}.pixels")]).unwrap();
            assert_eq!(got.dtype(), dtype);
            let error = relative_error(&got, &answers[&format!("{i}.embedding")]);
            assert!(error <= bound, "{i} {dtype:?}: {error:e}");
        }
    }
}

#[test]
fn weights_without_prefix_and_quick_gelu_are_known_too() {
    let answers = answers();
    let folder = tempfile::tempdir().unwrap();
    let weights: HashMap<String, Tensor> = answers
        .iter()
        .filter_map(|(key, tensor)| Some((key.strip_prefix("quick.")?.to_string(), tensor.clone())))
        .filter(|(key, _)| key != "embedding")
        .collect();
    safetensors::save(&weights, folder.path().join("model.safetensors")).unwrap();
    let config = Config::parse(
        r#"{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": 42, "patch_size": 16}"#,
    )
    .unwrap();
    assert_eq!(config.hidden_act, Activation::QuickGelu);
    assert_eq!(config.tokens(), 5);
    let weights = || Weights::open(folder.path(), DType::F32, &Device::Cpu).unwrap();
    let encoder = ClipVision::new(&config, weights()).unwrap();
    let error = relative_error(
        &encoder.forward(&answers["0.pixels"]).unwrap(),
        &answers["quick.embedding"],
    );
    assert!(error <= 5e-6, "{error:e}");

    let mut deeper = config.clone();
    deeper.num_hidden_layers = 4;
    let error = ClipVision::new(&deeper, weights()).unwrap_err().to_string();
    assert!(error.contains("encoder.layers.2"), "{error}");
    let mut shallower = config;
    shallower.num_hidden_layers = 1;
    let error = ClipVision::new(&shallower, weights()).unwrap_err().to_string();
    assert!(error.contains("have no place"), "{error}");
}

#[test]
fn pictures_are_resized_cut_and_scaled_as_in_transformers() {
    // Of resized bytes, a few differ by one: in units of 1 / (255 std), the smallest std being 0.26.
    let answers = answers();
    let unit = 1.0 / (255.0 * 0.2613);
    let preprocessor = preprocessor();
    for i in 0..5 {
        let (bytes, size) = picture(&answers[&format!("{i}.picture")]);
        let got = preprocessor.pixels(&bytes, size, &Device::Cpu).unwrap();
        let off = (&got - &answers[&format!("{i}.pixels")]).unwrap();
        assert!(most(&off) <= 1.01 * unit, "{size:?}: {}", most(&off));
        let mean = off.abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(mean <= 0.05 * unit, "{size:?}: {mean}");
        if size == (42, 42) {
            assert!(most(&off) <= 1e-6, "nothing is resized: {}", most(&off));
        }
    }
}

#[test]
fn a_tensor_is_the_picture_that_it_was_made_of() {
    let (bytes, size) = picture(&answers()["0.picture"]);
    let tensor = Tensor::from_vec(bytes.clone(), (size.0, size.1, 3), &Device::Cpu).unwrap();
    let tensor = tensor.permute((2, 0, 1)).unwrap().unsqueeze(0).unwrap();
    let tensor = ((tensor.to_dtype(DType::F32).unwrap() * (2.0 / 255.0)).unwrap() - 1.0).unwrap();
    let preprocessor = preprocessor();
    let (a, b) = (
        preprocessor.of_tensor(&tensor).unwrap(),
        preprocessor.pixels(&bytes, size, &Device::Cpu).unwrap(),
    );
    assert_eq!(most(&(a - b).unwrap()), 0.0);
}

#[test]
fn configs_and_pictures_that_do_not_fit_are_refused_by_key() {
    for (text, said) in [
        (r#"{"model_type": "siglip_vision_model"}"#, "siglip_vision_model"),
        (r#"{"hidden_act": "relu"}"#, "hidden_act"),
        (r#"{"num_attention_heads": 7}"#, "num_attention_heads"),
        (r#"{"num_channels": 4}"#, "num_channels"),
        (r#"{"patch_size": 225}"#, "patch_size"),
        (r#"{"hidden_size": 0}"#, "hidden_size"),
        (r#"{"registers": 4}"#, "registers"),
    ] {
        let error = format!("{:#}", Config::parse(text).unwrap_err());
        assert!(error.contains(said), "{error}");
    }
    for (text, said) in [
        (r#"{"do_center_crop": false}"#, "do_center_crop"),
        (r#"{"resample": 2}"#, "resample"),
        (r#"{"crop_size": {"height": 225, "width": 224}}"#, "crop_size.height"),
        (r#"{"size": {"height": 224, "width": 224}}"#, "size"),
        (r#"{"image_std": [0.2, 0, 0.2]}"#, "image_std"),
        (r#"{"do_sharpen": true}"#, "do_sharpen"),
    ] {
        let error = format!("{:#}", Preprocessor::parse(text).unwrap_err());
        assert!(error.contains(said), "{error}");
    }
    let preprocessor = preprocessor();
    for size in [(0, 4), (2, 3), (1, 12)] {
        assert!(preprocessor.pixels(&[0; 12], size, &Device::Cpu).is_err(), "{size:?}");
    }
    assert!(preprocessor.pixels(&[0; 3 * 70], (1, 70), &Device::Cpu).is_err());
    let wrong = Tensor::zeros((1, 3, 41, 42), DType::F32, &Device::Cpu).unwrap();
    assert!(
        encoder(DType::F32)
            .forward(&wrong)
            .unwrap_err()
            .to_string()
            .contains("42x42")
    );
}
