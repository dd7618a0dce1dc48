//! The text encoders of HunyuanVideo, LLaMA and CLIP, against transformers. `tests/fixtures/hunyuan_video` is written by
//! `scripts/fixtures/make_hunyuan_text.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use vtrain::nn::Weights;
use vtrain::nn::storage::quantize::Quantization;
use vtrain::text::{ClipText, Llama, TextTokenizer, clip_text, llama};

/// What the script asked.
fn prompts() -> [String; 4] {
    [
        "A red ball rolls over a green floor".into(),
        String::new(),
        "  Ünïcode: 東京 at night, it's 12:30 — don't\n\tlook!  <|eot_id|> 🎈".into(),
        (0..130).map(|i| format!("word{i}")).collect::<Vec<_>>().join(" "),
    ]
}

/// `DEFAULT_PROMPT_TEMPLATE` of HunyuanVideoPipeline around a prompt.
fn in_template(prompt: &str) -> String {
    format!(
        "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: \
         1. The main content and theme of the video.\
         2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.\
         3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.\
         4. background environment, light, style and atmosphere.\
         5. camera angles, movements, and transitions used in the video:<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
    )
}

fn folder(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/hunyuan_video/checkpoints/t2v")
        .join(part)
}

fn answers() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder("../../text.safetensors"), &Device::Cpu).unwrap()
}

fn ids(answers: &HashMap<String, Tensor>, key: &str) -> Vec<u32> {
    let ids: Vec<i32> = answers[key].to_vec1().unwrap();
    ids.into_iter().map(|id| id as u32).collect()
}

fn weights(part: &str, dtype: DType) -> Weights {
    Weights::open(&folder(part), dtype, &Device::Cpu).unwrap()
}

fn llama_of(skipped: usize, weights: Weights) -> anyhow::Result<Llama> {
    let config = llama::Config::load(&folder("text_encoder/config.json")).unwrap();
    Llama::new(&config, skipped, weights)
}

fn clip(change: &[(&str, serde_json::Value)], dtype: DType) -> anyhow::Result<ClipText> {
    let text = std::fs::read_to_string(folder("text_encoder_2/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in change {
        config[*key] = value.clone();
    }
    ClipText::new(
        &clip_text::Config::parse(&config.to_string())?,
        weights("text_encoder_2", dtype),
    )
}

/// max |a - b| / max |b|
fn off(a: &Tensor, b: &Tensor) -> f32 {
    let most = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(a.dims(), b.dims());
    most(&(a.to_dtype(DType::F32).unwrap() - b).unwrap()) / most(b)
}

/// Ids without padding.
fn own(ids: &[u32], pad: u32) -> &[u32] {
    let count = ids.iter().rposition(|id| *id != pad).map_or(0, |last| last + 1);
    &ids[..count]
}

#[test]
fn prompts_have_the_ids_that_transformers_gives_them() {
    let answers = answers();
    let (llama, clip) = (folder("tokenizer"), folder("tokenizer_2"));
    let (llama, clip) = (
        TextTokenizer::open(&llama).unwrap(),
        TextTokenizer::open(&clip).unwrap(),
    );
    for (i, prompt) in prompts().iter().enumerate() {
        for (what, said, length) in [("plain", prompt.clone(), 64), ("template", in_template(prompt), 351)] {
            let encoding = llama.encode_padded(&said, length).unwrap();
            assert_eq!(encoding.ids, ids(&answers, &format!("{i}.{what}.ids")), "{said}");
        }
        let encoding = clip.encode_padded(prompt, 77).unwrap();
        assert_eq!(encoding.ids, ids(&answers, &format!("{i}.clip.ids")), "{prompt}");
        assert_eq!(encoding.truncated > 0, i == 3, "{prompt}");
    }
}

#[test]
fn the_hidden_state_before_the_last_two_blocks_is_transformers() {
    let answers = answers();
    for (dtype, bound) in [(DType::F32, 5e-6), (DType::BF16, 5e-2)] {
        let llama = llama_of(2, weights("text_encoder", dtype)).unwrap();
        for i in 0..4 {
            for what in ["plain", "template"] {
                let (ids, expected) = (
                    ids(&answers, &format!("{i}.{what}.ids")),
                    &answers[&format!("{i}.{what}.hidden")],
                );
                let ids = own(&ids, 425);
                let hidden = llama.forward(&llama.embed(ids).unwrap()).unwrap();
                assert_eq!((hidden.dtype(), hidden.dim(1).unwrap()), (dtype, ids.len()));
                let last = expected.dim(0).unwrap();
                let hidden = hidden.squeeze(0).unwrap().narrow(0, ids.len() - last, last).unwrap();
                let off = off(&hidden, expected);
                assert!(off <= bound, "{i} {what} {dtype:?}: {off:e}");
            }
        }
    }
}

#[test]
fn another_number_of_skipped_blocks_is_another_state_and_all_of_them_are_refused() {
    let answers = answers();
    let ids = ids(&answers, "0.plain.ids");
    let hidden = |skipped| {
        let llama = llama_of(skipped, weights("text_encoder", DType::F32)).unwrap();
        llama.forward(&llama.embed(own(&ids, 425)).unwrap()).unwrap()
    };
    assert!(off(&hidden(1), &hidden(2)) > 1e-2);
    let error = llama_of(5, weights("text_encoder", DType::F32))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("num_hidden_layers") && error.contains("5 of 5"),
        "{error}"
    );
}

#[test]
fn names_below_model_and_a_head_for_words_are_known_and_other_tensors_are_not() {
    let file = folder("text_encoder").join("model.safetensors");
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let mut named: HashMap<String, Tensor> = tensors
        .iter()
        .map(|(key, x)| (format!("model.{key}"), x.clone()))
        .collect();
    named.insert("lm_head.weight".into(), tensors["embed_tokens.weight"].clone());
    let copy = tempfile::tempdir().unwrap();
    let open = |named: &HashMap<String, Tensor>| {
        candle_core::safetensors::save(named, copy.path().join("model.safetensors")).unwrap();
        llama_of(2, Weights::open(copy.path(), DType::F32, &Device::Cpu).unwrap())
    };
    let ids = [420, 32, 303, 67];
    let run = |llama: &Llama| llama.forward(&llama.embed(&ids).unwrap()).unwrap();
    let plain = llama_of(2, weights("text_encoder", DType::F32)).unwrap();
    assert!(off(&run(&open(&named).unwrap()), &run(&plain)) == 0.0);
    named.insert(
        "model.layers.0.self_attn.q_proj.bias".into(),
        tensors["norm.weight"].clone(),
    );
    let error = open(&named).map(drop).unwrap_err().to_string();
    assert!(error.contains("model.layers.0.self_attn.q_proj.bias"), "{error}");
}

#[test]
fn a_llama_in_few_bits_embeds_what_its_rounded_weights_embed() {
    let ids = [420, 32, 303, 67, 286, 282];
    let run = |weights: Weights| {
        let llama = llama_of(2, weights).unwrap();
        llama.forward(&llama.embed(&ids).unwrap()).unwrap()
    };
    let dense = run(weights("text_encoder", DType::F32));
    let file = folder("text_encoder").join("model.safetensors");
    for form in ["int8", "nf4"] {
        let form = Quantization::from_name(form).unwrap();
        let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        for (name, tensor) in &mut tensors {
            if llama::is_linear(name.trim_end_matches(".weight")) {
                let stored = form.store(tensor, &Device::Cpu).unwrap();
                *tensor = stored.rows(0..stored.shape().0, DType::F32).unwrap();
            }
        }
        let copy = tempfile::tempdir().unwrap();
        candle_core::safetensors::save(&tensors, copy.path().join("model.safetensors")).unwrap();
        let rounded = run(Weights::open(copy.path(), DType::F32, &Device::Cpu).unwrap());
        let stored = run(weights("text_encoder", DType::F32).quantized(Some(form), &["embed_tokens."]));
        assert!(
            off(&stored, &rounded) <= 1e-5 && off(&stored, &dense) > 1e-4,
            "{}",
            form.name()
        );
    }
}

#[test]
fn the_vector_of_a_prompt_is_clips_pooled_output() {
    let answers = answers();
    for (dtype, bound) in [(DType::F32, 5e-6), (DType::BF16, 5e-2)] {
        let clip = clip(&[], dtype).unwrap();
        for i in 0..4 {
            let pooled = clip.pooled(&ids(&answers, &format!("{i}.clip.ids"))).unwrap();
            assert_eq!(pooled.dtype(), dtype);
            let off = off(&pooled.squeeze(0).unwrap(), &answers[&format!("{i}.clip.pooled")]);
            assert!(off <= bound, "{i} {dtype:?}: {off:e}");
        }
    }
}

#[test]
fn an_end_token_that_is_named_is_the_first_of_its_kind() {
    let answers = answers();
    let ids = ids(&answers, "named.ids");
    let named = clip(&[("eos_token_id", 5.into())], DType::F32).unwrap();
    let pooled = named.pooled(&ids).unwrap().squeeze(0).unwrap();
    assert!(off(&pooled, &answers["named.pooled"]) <= 5e-6);
    let largest = clip(&[], DType::F32).unwrap().pooled(&ids).unwrap().squeeze(0).unwrap();
    assert!(off(&largest, &answers["named.pooled"]) > 1e-2);
}

#[test]
fn what_the_encoders_cannot_compute_is_refused_by_its_key() {
    let parse = |text: &str| llama::Config::parse(text).map(drop).unwrap_err();
    for (config, key) in [
        (
            r#"{"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}"#,
            "rope_scaling",
        ),
        (r#"{"model_type": "mistral"}"#, "model_type"),
        (r#"{"hidden_act": "gelu"}"#, "hidden_act"),
        (r#"{"attention_bias": true}"#, "attention_bias"),
        (
            r#"{"num_attention_heads": 6, "num_key_value_heads": 4}"#,
            "num_key_value_heads",
        ),
        (r#"{"num_attention_heads": 0}"#, "num_attention_heads"),
        (r#"{"head_dim": 5}"#, "head_dim"),
        (r#"{"rope_theta": -1.0}"#, "rope_theta"),
        (r#"{"sliding_window": 5}"#, "sliding_window"),
    ] {
        let error = format!("{:#}", parse(config));
        assert!(error.contains(key), "{config}: {error}");
    }
    for (config, key) in [
        (r#"{"model_type": "clip_vision_model"}"#, "model_type"),
        (
            r#"{"hidden_size": 20, "num_attention_heads": 3}"#,
            "num_attention_heads",
        ),
        (r#"{"max_position_embeddings": 0}"#, "max_position_embeddings"),
    ] {
        let error = format!("{:#}", clip_text::Config::parse(config).map(drop).unwrap_err());
        assert!(error.contains(key), "{config}: {error}");
    }
    let clip = clip(&[], DType::F32).unwrap();
    for (ids, why) in [(vec![], "0 tokens"), (vec![1; 78], "78 tokens"), (vec![738], "738")] {
        let error = clip.pooled(&ids).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let llama = llama_of(2, weights("text_encoder", DType::F32)).unwrap();
    let error = llama.embed(&[426]).unwrap_err().to_string();
    assert!(error.contains("426 is beyond the text encoder's 426"), "{error}");
}

#[test]
fn a_damaged_vocabulary_is_told_by_file_and_line() {
    for (name, content, why) in [
        ("merges.txt", "#version: 0.2\na b\nabc\n", "merges.txt: line 3"),
        ("merges.txt", "#version: 0.2\nno such\n", "vocab.json"),
        ("vocab.json", "{\"a\": 1}", "has no <|startoftext|>"),
        ("vocab.json", "[]", "vocab.json: not a vocabulary"),
    ] {
        let copy = tempfile::tempdir().unwrap();
        crate::fuzz::copy(&folder("tokenizer_2"), copy.path());
        std::fs::write(copy.path().join(name), content).unwrap();
        let error = format!("{:#}", TextTokenizer::open(copy.path()).unwrap_err());
        assert!(error.contains(why), "{name}: {error}");
    }
}
