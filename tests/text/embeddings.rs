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
