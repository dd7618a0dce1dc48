//! Embeddings against transformers' T5EncoderModel.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors};
use vtrain::nn::Weights;
use vtrain::text::T5Encoder;
use vtrain::text::t5::{Config, bucket};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox")
}

fn encoder(folder: &str, dtype: DType) -> T5Encoder {
    let folder = fixtures().join(folder);
    let config = Config::load(&folder.join("config.json")).unwrap();
    T5Encoder::new(&config, Weights::open(&folder, dtype, &Device::Cpu).unwrap()).unwrap()
}

/// |a - b| / |b|
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let norm = |x: Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let a = a.to_dtype(DType::F32).unwrap();
    f64::from(norm((a - b).unwrap()) / norm(b.clone()))
}

#[test]
fn embeddings_equal_transformers_with_and_without_a_mask() {
    // T5EncoderModel(config)(ids, attention_mask=mask)[0]: the keys are explained beside the file.
    let file = safetensors::load(fixtures().join("t5.safetensors"), &Device::Cpu).unwrap();
    let at = |key: &str| &file[key];
    let ids = |key: &str| at(key).to_dtype(DType::U32).unwrap();
    let mask = at("mask");
    for (dtype, bound) in [(DType::F32, 1e-5), (DType::BF16, 3e-2)] {
        for (name, folder) in [("gated", "cogvideox-2b/text_encoder"), ("relu", "t5-relu")] {
            let encoder = encoder(folder, dtype);
            let got = encoder.forward(&ids("ids"), None).unwrap();
            assert_eq!(got.dtype(), dtype);
            let off = distance(&got, at(&format!("{name}.unmasked")));
            assert!(off < bound, "{name} {dtype:?}: {off}");
            let off = distance(
                &encoder.forward(&ids("ids"), Some(mask)).unwrap(),
                at(&format!("{name}.masked")),
            );
            assert!(off < bound, "{name} {dtype:?} masked: {off}");
        }
        let long = encoder("cogvideox-5b/text_encoder", dtype).forward(&ids("long.ids"), None);
        let off = distance(&long.unwrap(), at("long.gated"));
        assert!(off < bound, "226 tokens, {dtype:?}: {off}");
    }
}

#[test]
fn a_caption_without_any_token_is_spread_evenly() {
    // model(ids, attention_mask=torch.zeros_like(mask))[0][0, 0, :4]
    let file = safetensors::load(fixtures().join("t5.safetensors"), &Device::Cpu).unwrap();
    let ids = file["ids"].to_dtype(DType::U32).unwrap();
    let mask = file["mask"].zeros_like().unwrap();
    let got = encoder("cogvideox-2b/text_encoder", DType::F32)
        .forward(&ids, Some(&mask))
        .unwrap();
    let got = got.flatten_all().unwrap().narrow(0, 0, 4).unwrap();
    let want = Tensor::new(&[0.5387f32, 0.9446, -0.7218, -0.1716], &Device::Cpu).unwrap();
    assert!(distance(&got, &want) < 1e-4, "{got}");
}

#[test]
fn distances_fall_into_the_buckets_of_transformers() {
    // b = T5Attention._relative_position_bucket(torch.arange(1, 601), True, buckets, distance).tolist()
    // [i + 1 for i in range(600) if i == 0 or b[i] != b[i - 1]]
    let cases: [(usize, usize, &[i64]); 4] = [
        (32, 128, &[1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]),
        (20, 60, &[1, 2, 3, 4, 5, 9, 14, 23, 37]),
        (8, 20, &[1, 2, 7]),
        (
            64,
            300,
            &[
                1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20, 24, 28, 34, 40, 49, 58, 70, 84, 100, 121,
                145, 174, 208, 250,
            ],
        ),
    ];
    for (buckets, farthest, starts) in cases {
        let further = |d: i64| bucket(d, buckets, farthest);
        let found: Vec<i64> = (1..=600)
            .filter(|d| *d == 1 || further(*d) != further(*d - 1))
            .collect();
        assert_eq!(found, starts);
        assert_eq!(further(0), 0);
        assert_eq!((further(600), further(-600)), (buckets - 1, buckets / 2 - 1));
        assert!((1..=600).all(|d| further(d) == further(-d) + buckets / 2));
    }
}

#[test]
fn the_embedding_table_has_two_names() {
    let folder = fixtures().join("cogvideox-2b/text_encoder");
    let mut tensors = safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let table = tensors.remove("shared.weight").unwrap();
    tensors.insert("encoder.embed_tokens.weight".to_string(), table);
    tensors.insert(
        "decoder.final_layer_norm.weight".to_string(),
        tensors["encoder.final_layer_norm.weight"].clone(),
    );
    let renamed = tempfile::tempdir().unwrap();
    safetensors::save(&tensors, renamed.path().join("model.safetensors")).unwrap();
    let config = Config::load(&folder.join("config.json")).unwrap();
    let renamed = Weights::open(renamed.path(), DType::F32, &Device::Cpu).unwrap();
    let renamed = T5Encoder::new(&config, renamed).unwrap();
    let ids = Tensor::new(&[[5u32, 9, 1, 0]], &Device::Cpu).unwrap();
    let want = encoder("cogvideox-2b/text_encoder", DType::F32)
        .forward(&ids, None)
        .unwrap();
    assert_eq!(distance(&renamed.forward(&ids, None).unwrap(), &want), 0.0);
}

#[test]
fn a_config_that_asks_for_another_computation_is_refused() {
    let cases = [
        (r#"{"d_model": 0}"#, "d_model: 0 is not a valid size"),
        (r#"{"d_model": -4}"#, "d_model"),
        (
            r#"{"model_type": "mt5"}"#,
            r#"unknown variant `mt5`, expected `t5` or `umt5`"#,
        ),
        (r#"{"is_decoder": true}"#, "is_decoder"),
        (r#"{"feed_forward_proj": "gated-silu"}"#, "feed_forward_proj"),
        (
            r#"{"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}"#,
            "dense_act_fn",
        ),
        (r#"{"is_gated_act": true}"#, "is_gated_act"),
        (
            r#"{"scalable_attention": true}"#,
            "scalable_attention: true: this key is not known",
        ),
        (
            r#"{"relative_attention_num_buckets": 7}"#,
            "relative_attention_num_buckets",
        ),
        (
            r#"{"relative_attention_max_distance": 8}"#,
            "relative_attention_max_distance",
        ),
        (r#"{"layer_norm_epsilon": -1}"#, "layer_norm_epsilon"),
        ("[]", "not a JSON object"),
    ];
    for (text, want) in cases {
        let error = format!("{:#}", Config::parse(text).unwrap_err());
        assert!(error.contains(want), "{error} (not {want})");
    }
    let plain = Config::parse(r#"{"torch_dtype": "bfloat16", "n_positions": 512, "dense_act_fn": "relu"}"#).unwrap();
    assert_eq!(plain, Config::default());
}

#[test]
fn weights_ids_and_masks_that_do_not_fit_are_refused() {
    let folder = fixtures().join("cogvideox-2b/text_encoder");
    let good = Config::load(&folder.join("config.json")).unwrap();
    let open = |config: &Config| T5Encoder::new(config, Weights::open(&folder, DType::F32, &Device::Cpu).unwrap());
    let larger = Config {
        d_ff: 41,
        ..good.clone()
    };
    let error = open(&larger).unwrap_err().to_string();
    assert!(error.contains("wi_0.weight should be [41, 24]"), "{error}");
    let shorter = Config {
        num_layers: 1,
        ..good.clone()
    };
    let error = open(&shorter).unwrap_err().to_string();
    assert!(error.contains("9 tensors have no place"), "{error}");

    let encoder = open(&good).unwrap();
    let ids = Tensor::new(&[[584u32, 1]], &Device::Cpu).unwrap();
    let error = encoder.forward(&ids, None).unwrap_err().to_string();
    assert!(
        error.contains("the token id 584 is beyond the text encoder's 584"),
        "{error}"
    );
    let (ids, mask) = (ids.zeros_like().unwrap(), ids.narrow(1, 0, 1).unwrap());
    let error = encoder.forward(&ids, Some(&mask)).unwrap_err().to_string();
    assert!(error.contains("the mask is [1, 1] and the ids [1, 2]"), "{error}");
    let none = Tensor::zeros((2, 0), DType::U32, &Device::Cpu).unwrap();
    assert_eq!(encoder.forward(&none, None).unwrap().dims(), [2, 0, 24]);
}
