//! Allegro's transformer against diffusers and PEFT. The files in `tests/fixtures/allegro` are written by
//! `scripts/fixtures/make_allegro.py`; the queries are in `scripts/fixtures/{allegro/dit,dit_lora}.py`.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use vtrain::models::allegro::dit::Dit;
use vtrain::models::denoiser::{Denoiser, Input, TextEmbeds};
use vtrain::nn::Load;
use vtrain::nn::adapter::Adapt;

use crate::dit_answers::{Answers, relative_error};

const NAME: &str = "allegro-t2v";
const CASES: [&str; 3] = ["pair", "one", "unmasked"];

fn answers() -> Answers {
    Answers::of("allegro")
}

fn dit(dtype: DType, adapt: Option<Arc<dyn Adapt>>) -> Dit {
    let load = Load {
        adapters: adapt,
        ..Load::new(dtype, &Device::Cpu)
    };
    Dit::load(&answers().transformer(NAME), &load).unwrap()
}

fn input(answers: &Answers, key: &str) -> Input {
    let of = |what: &str| answers.get(&format!("{key}.{what}"));
    let text = TextEmbeds {
        hidden: of("text"),
        mask: answers.find(&format!("{key}.mask")),
        pooled: None,
    };
    Input::new(of("latents"), of("timestep"), text)
}

/// In bf16 too; and what stands in the padding of a caption does not matter, nor who stands beside it.
#[test]
fn predictions_are_those_of_diffusers() {
    let answers = answers();
    for (dtype, bound) in [(DType::F32, 1e-5), (DType::BF16, 5e-2)] {
        let dit = dit(dtype, None);
        for case in CASES {
            let key = format!("{NAME}.{case}");
            let out = dit.forward(&input(&answers, &key)).unwrap();
            assert_eq!(out.dtype(), dtype);
            let error = relative_error(&out, &answers.get(&format!("{key}.out")));
            println!("{key} {dtype:?}: {error:.1e}");
            assert!(error <= bound, "{key} {dtype:?}: {error:e}");
        }
    }
}

#[test]
fn a_caption_beside_a_longer_one_is_what_it_is_alone_whatever_stands_in_its_padding() {
    let (answers, dit) = (answers(), dit(DType::F32, None));
    let key = format!("{NAME}.pair");
    let pair = input(&answers, &key);
    let expected = answers.get(&format!("{key}.out")).narrow(0, 1, 1).unwrap();
    let mut alone = Input::new(
        pair.latents.narrow(0, 1, 1).unwrap(),
        pair.timestep.narrow(0, 1, 1).unwrap(),
        pair.text.narrow(1, 1).unwrap(),
    );
    let noise = alone.text.mask.as_ref().unwrap().affine(-7.0, 7.0).unwrap();
    alone.text.hidden = alone.text.hidden.broadcast_add(&noise.unsqueeze(2).unwrap()).unwrap();
    let error = relative_error(&dit.forward(&alone).unwrap(), &expected);
    assert!(error <= 1e-5, "{error:e}");
}

#[test]
fn adapters_have_the_gradients_that_torch_gives_them() {
    let answers = answers();
    let adapters = answers.adapters("training");
    let dit = dit(DType::F32, Some(adapters.clone()));
    answers.gradients_agree("training", &dit, &input(&answers, "training"), &adapters);
}

#[test]
fn blocks_renew_the_tokens_and_nothing_else() {
    let (answers, dit) = (answers(), dit(DType::F32, None));
    let stem = dit.embed(&input(&answers, &format!("{NAME}.pair"))).unwrap();
    let behind = dit.block(0, &stem).unwrap();
    let (new, old) = (behind.tensors(), stem.tensors());
    let renewed: Vec<bool> = new.iter().zip(old).map(|(new, old)| new.id() != old.id()).collect();
    assert_eq!(renewed, [true, false, false, false]); // hidden, time, modulation, text
}

/// The class has norms that it never calls: `norm3`, and none before cross-attention. Without parameters they leave no key.
#[test]
fn the_checkpoint_has_no_key_that_is_not_read() {
    let path = answers().transformer(NAME).join("diffusion_pytorch_model.safetensors");
    let tensors: HashMap<String, Tensor> = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    assert!(tensors.keys().all(|key| !key.contains("norm")), "{:?}", tensors.keys());
    dit(DType::F32, None); // all of them are read, or loading fails
}

#[test]
fn a_config_that_is_not_understood_is_named_with_its_key() {
    let answers = answers();
    for (key, value) in [
        ("_class_name", "LTXVideoTransformer3DModel".into()),
        ("image_dim", 4.into()),
        ("activation_fn", "geglu".into()),
        ("patch_size", 0.into()),
        ("patch_size_t", 2.into()),
        ("num_layers", 0.into()),
        ("in_channels", (1u64 << 40).into()),
        ("attention_head_dim", 10.into()),
        ("cross_attention_dim", 30.into()),
        ("norm_elementwise_affine", true.into()),
        ("norm_eps", 0.into()),
        ("interpolation_scale_t", serde_json::Value::Null),
        ("interpolation_scale_w", 0.into()),
        ("dropout", 0.1.into()),
    ] {
        let load = |folder: &std::path::Path| Dit::load(folder, &Load::new(DType::F32, &Device::Cpu));
        let error = answers.refusal(NAME, (key, value), load);
        assert!(error.contains("config.json") && error.contains(key), "{key}: {error}");
    }
}
