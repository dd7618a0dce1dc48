//! Wan's transformer against diffusers and PEFT. The files in `tests/fixtures/wan` are written by
//! `scripts/fixtures/make_wan.py`; the queries are in `scripts/fixtures/{wan/dit,dit_lora}.py`.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use vtrain::models::denoiser::{Denoiser, Input};
use vtrain::models::wan::dit::Dit;
use vtrain::nn::Load;
use vtrain::nn::adapter::Adapt;

use crate::dit_answers::{Answers, relative_error};

const CASES: [(&str, &str); 4] = [
    ("wan-2.1-t2v", "wide"),
    ("wan-2.1-t2v", "tall"),
    ("wan-2.1-i2v", "wide"),
    ("wan-2.1-flf2v", "tall"),
];

fn answers() -> Answers {
    Answers::of("wan")
}

fn dit(name: &str, dtype: DType, adapt: Option<Arc<dyn Adapt>>) -> Dit {
    Dit::load(
        &answers().transformer(name),
        &Load {
            adapters: adapt,
            ..Load::new(dtype, &Device::Cpu)
        },
    )
    .unwrap()
}

fn input(answers: &Answers, key: &str) -> Input {
    let of = |what: &str| answers.get(&format!("{key}.{what}"));
    Input {
        image: answers.find(&format!("{key}.image")),
        ..Input::new(of("latents"), of("timestep"), of("text"))
    }
}

#[test]
fn predictions_are_those_of_diffusers() {
    let answers = answers();
    for (name, case) in CASES {
        let key = format!("{name}.{case}");
        let out = dit(name, DType::F32, None).forward(&input(&answers, &key)).unwrap();
        let error = relative_error(&out, &answers.get(&format!("{key}.out")));
        println!("{key}: {error:.1e}");
        assert!(error <= 1e-5, "{key}: {error:e}");
    }
}

#[test]
fn bf16_stays_close() {
    let answers = answers();
    for (name, case) in CASES {
        let key = format!("{name}.{case}");
        let out = dit(name, DType::BF16, None).forward(&input(&answers, &key)).unwrap();
        assert_eq!(out.dtype(), DType::BF16);
        let error = relative_error(&out, &answers.get(&format!("{key}.out")));
        println!("{key}: {error:.1e}");
        assert!(error <= 5e-2, "{key}: {error:e}");
    }
}

#[test]
fn adapters_have_the_gradients_that_torch_gives_them() {
    let answers = answers();
    for name in ["wan-2.1-t2v", "wan-2.1-i2v"] {
        let key = format!("{name}.training");
        let adapters = answers.adapters(&key);
        let dit = dit(name, DType::F32, Some(adapters.clone()));
        answers.gradients_agree(&key, &dit, &input(&answers, &key), &adapters);
    }
}

#[test]
fn blocks_renew_the_tokens_and_nothing_else() {
    let (answers, dit) = (answers(), dit("wan-2.1-i2v", DType::F32, None));
    let stem = dit.embed(&input(&answers, "wan-2.1-i2v.wide")).unwrap();
    let behind = dit.block(0, &stem).unwrap();
    let both = behind.tensors().into_iter().zip(stem.tensors());
    let new: Vec<bool> = both.map(|(new, old)| new.id() != old.id()).collect();
    assert_eq!(new, [true, false, false, false, false]); // hidden, time, modulation, text, image
    assert!(dit.block(dit.num_blocks(), &stem).is_err());
}

#[test]
fn a_norm_of_queries_that_are_not_there_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let from = answers().transformer("wan-2.1-i2v");
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    let name = "diffusion_pytorch_model.safetensors";
    let mut tensors = candle_core::safetensors::load(from.join(name), &Device::Cpu).unwrap();
    let gain = tensors["blocks.1.attn2.norm_added_k.weight"].clone();
    tensors.insert("blocks.1.attn2.norm_added_q.weight".into(), gain.clone());
    candle_core::safetensors::save(&tensors, folder.path().join(name)).unwrap();
    assert!(Dit::load(folder.path(), &Load::new(DType::F32, &Device::Cpu)).is_ok());
    tensors.insert("blocks.1.attn1.norm_added_q.weight".into(), gain);
    candle_core::safetensors::save(&tensors, folder.path().join(name)).unwrap();
    let error = Dit::load(folder.path(), &Load::new(DType::F32, &Device::Cpu)).unwrap_err();
    assert!(error.to_string().contains("attn1.norm_added_q"), "{error:#}");
}

#[test]
fn an_input_that_does_not_fit_is_refused_in_words() {
    let answers = answers();
    let refused = |name: &str, case: &str, change: &dyn Fn(&mut Input), said: &str| {
        let mut input = input(&answers, &format!("{name}.{case}"));
        change(&mut input);
        let error = dit(name, DType::F32, None).forward(&input).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let t2v = |change: &dyn Fn(&mut Input), said: &str| refused("wan-2.1-t2v", "wide", change, said);
    t2v(
        &|input| input.latents = zeros(&[2, 11, 3, 4, 6]),
        "11 channels for a model of 4",
    );
    t2v(&|input| input.latents = zeros(&[2, 4, 3, 3, 6]), "3 latent rows");
    t2v(&|input| input.latents = zeros(&[2, 4, 0, 4, 6]), "0 latent frames");
    t2v(
        &|input| input.latents = zeros(&[2, 4, 1, 2, 26]),
        "26 latent columns are more",
    );
    t2v(&|input| input.latents = zeros(&[1, 4, 3, 4, 6]), "1 clips, 2 texts");
    t2v(&|input| input.timestep = zeros(&[2, 3]), "timesteps [2, 3]");
    t2v(&|input| input.text.hidden = zeros(&[2, 7, 5]), "width 5");
    t2v(&|input| input.text.mask = Some(zeros(&[2, 7])), "takes no text mask");
    t2v(&|input| input.image = Some(zeros(&[2, 7, 9])), "takes no encoded image");
    let i2v = |change: &dyn Fn(&mut Input), said: &str| refused("wan-2.1-i2v", "wide", change, said);
    i2v(&|input| input.image = None, "needs an encoded image");
    i2v(&|input| input.image = Some(zeros(&[1, 7, 8])), "tokens of width 24");
    let image = |input: &mut Input| input.image = Some(zeros(&[1, 7, 24]));
    refused("wan-2.1-flf2v", "tall", &image, "8 tokens of width 24");
}

#[test]
fn a_config_that_is_not_understood_is_named_with_its_key() {
    let answers = answers();
    for (key, value) in [
        ("_class_name", "LTXVideoTransformer3DModel".into()),
        ("vace_layers", vec![0, 1].into()),
        ("qk_norm", serde_json::Value::Null),
        ("patch_size", vec![1, 2].into()),
        ("patch_size", vec![1, 0, 2].into()),
        ("attention_head_dim", 7.into()),
        ("freq_dim", 9.into()),
        ("num_layers", 0.into()),
        ("ffn_dim", (1u64 << 40).into()),
        ("added_kv_proj_dim", 30.into()),
        ("image_dim", serde_json::Value::Null),
        ("eps", (-1).into()),
    ] {
        let load = |folder: &Path| Dit::load(folder, &Load::new(DType::F32, &Device::Cpu));
        let error = answers.refusal("wan-2.1-i2v", (key, value), load);
        assert!(error.contains("config.json") && error.contains(key), "{key}: {error}");
    }
    let load = |folder: &Path| Dit::load(folder, &Load::new(DType::F32, &Device::Cpu));
    let error = answers.refusal("wan-2.1-t2v", ("pos_embed_seq_len", 8.into()), load);
    assert!(error.contains("pos_embed_seq_len"), "{error}");
}
