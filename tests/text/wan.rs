//! Prompts in Wan's pipelines: cleaned, as ids, as UMT5's embeddings. `tests/fixtures/wan/text.*` are written by
//! `scripts/fixtures/make_wan.py`.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors};
use serde::Deserialize;
use vtrain::nn::Weights;
use vtrain::text::clean::prompt_clean;
use vtrain::text::sentencepiece::SentencePiece;
use vtrain::text::t5::{Config, ModelType};
use vtrain::text::{T5Encoder, TextTokenizer};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wan")
}

#[derive(Deserialize)]
struct Prompts {
    prompts: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    text: String,
    clean: String,
    /// By tokenizer.json.
    ids: Vec<u32>,
    /// By spiece.model, which knows no special tokens.
    pieces: Vec<u32>,
}

fn prompts() -> Prompts {
    let prompts: Prompts = serde_json::from_str(&fs::read_to_string(fixtures().join("text.json")).unwrap()).unwrap();
    assert!(prompts.rows.len() > 100);
    prompts
}

fn encoder(dtype: DType) -> T5Encoder {
    let folder = fixtures().join("wan-2.1-t2v/text_encoder");
    let config = Config::load(&folder.join("config.json")).unwrap();
    assert_eq!(config.model_type, ModelType::Umt5);
    T5Encoder::new(&config, Weights::open(&folder, dtype, &Device::Cpu).unwrap()).unwrap()
}

/// max |a - b| / max |b|
fn relative_error(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let most = |x: Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    most((a.to_dtype(DType::F32).unwrap() - b).unwrap()) / most(b.clone())
}

#[test]
fn umt5_equals_transformers_with_and_without_a_mask() {
    let file = safetensors::load(fixtures().join("text.safetensors"), &Device::Cpu).unwrap();
    let ids = file["ids"].to_dtype(DType::U32).unwrap();
    for (dtype, bound) in [(DType::F32, 5e-6), (DType::BF16, 3e-2)] {
        let encoder = encoder(dtype);
        for (key, mask) in [("masked", Some(&file["mask"])), ("unmasked", None)] {
            let error = relative_error(&encoder.forward(&ids, mask).unwrap(), &file[key]);
            assert!(error <= bound, "{key} {dtype:?}: {error:e}");
        }
    }
}

#[test]
fn prompts_become_the_embeddings_of_the_pipeline() {
    let file = safetensors::load(fixtures().join("text.safetensors"), &Device::Cpu).unwrap();
    let tokenizer = TextTokenizer::open(&fixtures().join("wan-2.1-t2v/tokenizer")).unwrap();
    let encoder = encoder(DType::F32);
    let length = file["ids"].dim(1).unwrap();
    for (i, prompt) in prompts().prompts.iter().enumerate() {
        let encoding = tokenizer.encode_padded(&prompt_clean(prompt), length).unwrap();
        let tokens = encoding.mask.iter().filter(|bit| **bit == 1).count();
        let embedded = encoder.forward_padded(&encoding.ids[..tokens], length).unwrap();
        let wanted = file["pipeline"].narrow(0, i, 1).unwrap();
        let error = relative_error(&embedded, &wanted);
        assert!(error <= 5e-6, "{prompt}: {error:e}");
    }
    let error = encoder.forward_padded(&[1; 5], 4).unwrap_err().to_string();
    assert!(error.contains("5 tokens are more than 4"), "{error}");
}

#[test]
fn prompts_are_tidied_as_wan_does() {
    let wrong: Vec<String> = prompts()
        .rows
        .iter()
        .filter(|row| prompt_clean(&row.text) != row.clean)
        .map(|row| format!("{:?}: {:?}, not {:?}", row.text, prompt_clean(&row.text), row.clean))
        .collect();
    assert!(wrong.is_empty(), "{} lines:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn tidying_ends_on_anything() {
    let nested = format!("&{}eacute;", "amp;".repeat(2000));
    assert!(prompt_clean(&nested).len() < nested.len());
    assert_eq!(prompt_clean(&"Ã©".repeat(20_000)).chars().count(), 20_000);
    assert!(!prompt_clean(&"\u{1b}[&#".repeat(20_000)).contains('\u{1b}'));
}

#[test]
fn ids_are_those_of_the_files() {
    let tokenizer = TextTokenizer::open(&fixtures().join("wan-2.1-t2v/tokenizer")).unwrap();
    let model = SentencePiece::open(&fixtures().join("wan-2.1-t2v/tokenizer/spiece.model")).unwrap();
    for row in prompts().rows {
        assert_eq!(tokenizer.encode(&row.clean).unwrap(), row.ids, "{:?}", row.clean);
        assert_eq!(model.encode(&row.clean), row.pieces, "{:?}", row.clean);
    }
}

#[test]
fn the_model_alone_has_the_same_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["spiece.model", "tokenizer_config.json", "special_tokens_map.json"] {
        let from = fixtures().join("wan-2.1-t2v/tokenizer").join(name);
        fs::copy(from, folder.path().join(name)).unwrap();
    }
    let (whole, alone) = (
        TextTokenizer::open(&fixtures().join("wan-2.1-t2v/tokenizer")).unwrap(),
        TextTokenizer::open(folder.path()).unwrap(),
    );
    for text in [
        "<extra_id_0>",
        "a red ball",
        "digits 123 \u{1f3ac}",
        "the <extra_id_299>",
    ] {
        assert_eq!(alone.encode(text).unwrap(), whole.encode(text).unwrap(), "{text}");
    }
}

#[test]
fn a_config_of_umt5_has_its_own_defaults() {
    // transformers.UMT5Config().d_ff, .num_layers, .num_heads
    let config = Config::parse(r#"{"model_type": "umt5", "scalable_attention": true}"#).unwrap();
    assert_eq!((config.d_ff, config.num_layers, config.num_heads), (1024, 8, 6));
    assert!(Config::parse(r#"{"model_type": "umt5", "dense_act_fn": "relu"}"#).is_err());
}
