//! HunyuanVideo's transformer against diffusers: `tests/fixtures/hunyuan_video/dit.safetensors` is written by
//! `scripts/fixtures/make_hunyuan_video.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use vtrain::diffusers_config::Config as _;
use vtrain::models::denoiser::{Denoiser, Input, Scalar, Scalars, TextEmbeds};
use vtrain::models::hunyuan_video::dit::{Config, Dit};
use vtrain::nn::Load;
use vtrain::train::segments::{ActivationPolicy, FreeMemory, forward_backward};

const KINDS: [(&str, bool); 3] = [("t2v", true), ("i2v-concat", false), ("i2v-replace", true)];
const CASES: [(&str, f64); 3] = [("pair", 6.0), ("one", 1.0), ("image", 3.5)];

fn folder(kind: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hunyuan_video");
    fixtures.join(format!("hunyuan-{kind}/transformer"))
}

fn answers() -> HashMap<String, Tensor> {
    let file = folder("t2v").join("../../dit.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

fn load(kind: &str, dtype: DType) -> Dit {
    Dit::load(&folder(kind), &Load::new(dtype, &Device::Cpu)).unwrap()
}

fn input(answers: &HashMap<String, Tensor>, kind: &str, case: &str, guidance: Option<f64>) -> Input {
    let of = |what: &str| answers[&format!("{kind}.{case}.{what}")].clone();
    let text = TextEmbeds {
        hidden: of("text"),
        mask: Some(of("mask")),
        pooled: Some(of("pooled")),
    };
    Input {
        scalars: guidance.map_or(Scalars::default(), |scale| Scalars::of(Scalar::Guidance, vec![scale])),
        ..Input::new(of("latents"), of("timestep"), text)
    }
}

/// max |a - b| / max |b|
fn off(a: &Tensor, b: &Tensor) -> f32 {
    let most = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(a.dims(), b.dims());
    most(&(a.to_dtype(DType::F32).unwrap() - b).unwrap()) / most(b)
}

#[test]
fn every_kind_predicts_what_diffusers_predicts() {
    let answers = answers();
    for (dtype, bound) in [(DType::F32, 5e-5), (DType::BF16, 6e-2)] {
        for (kind, guided) in KINDS {
            let dit = load(kind, dtype);
            for (case, scale) in CASES {
                let input = input(&answers, kind, case, guided.then_some(scale));
                let off = off(&dit.forward(&input).unwrap(), &answers[&format!("{kind}.{case}.out")]);
                assert!(off <= bound, "{kind} {case} {dtype:?}: {off:e}");
            }
        }
    }
}

#[test]
fn a_caption_alone_and_beside_a_longer_one_is_the_same_whatever_stands_in_its_padding() {
    let answers = answers();
    for (kind, guided) in KINDS {
        let dit = load(kind, DType::F32);
        let pair = input(&answers, kind, "pair", guided.then_some(6.0));
        let expected = dit.forward(&pair).unwrap().narrow(0, 1, 1).unwrap();
        let mut alone = Input {
            latents: pair.latents.narrow(0, 1, 1).unwrap(),
            timestep: pair.timestep.narrow(0, 1, 1).unwrap(),
            text: pair.text.narrow(1, 1).unwrap(),
            ..pair.clone()
        };
        assert!(off(&dit.forward(&alone).unwrap(), &expected) <= 2e-6, "{kind}");
        let mask = alone.text.mask.clone().unwrap().unsqueeze(2).unwrap();
        let noise = (mask.affine(-7.0, 7.0).unwrap())
            .broadcast_as(alone.text.hidden.shape())
            .unwrap();
        alone.text.hidden = (alone.text.hidden + noise).unwrap();
        assert!(off(&dit.forward(&alone).unwrap(), &expected) <= 2e-6, "{kind}: padding");
    }
}

#[test]
fn the_guidance_scale_is_what_a_model_in_bf16_is_told_too() {
    let answers = answers();
    let dit = load("t2v", DType::F32);
    let predict = |scale| dit.forward(&input(&answers, "t2v", "one", Some(scale))).unwrap();
    // 6000 is 6016 in bf16: what would be embedded there if the product were rounded.
    assert!(off(&predict(6.0), &predict(6.016)) > 1e-4);
    let rounded = load("t2v", DType::BF16);
    let predict = |scale| rounded.forward(&input(&answers, "t2v", "one", Some(scale))).unwrap();
    let difference = off(
        &predict(6.0).to_dtype(DType::F32).unwrap(),
        &predict(6.016).to_dtype(DType::F32).unwrap(),
    );
    assert!(difference > 1e-4, "{difference:e}");
}

#[test]
fn what_a_kind_does_not_take_is_refused() {
    let answers = answers();
    let error = |kind: &str, change: &dyn Fn(&mut Input)| {
        let mut input = input(&answers, kind, "one", (kind != "i2v-concat").then_some(1.0));
        change(&mut input);
        load(kind, DType::F32).forward(&input).unwrap_err().to_string()
    };
    assert!(error("t2v", &|input| input.scalars = Scalars::default()).contains("guidance scales none"));
    assert!(error("t2v", &|input| input.text.pooled = None).contains("pooled text None"));
    let wide = error("i2v-concat", &|input| {
        input.latents = input.latents.narrow(1, 0, 5).unwrap()
    });
    assert!(wide.contains("5 channels for a model of 11"), "{wide}");
    for (setting, key) in [
        (r#""rope_axes_dim": [16, 56, 54]"#, "rope_axes_dim"),
        (r#""image_condition_type": "other""#, "image_condition_type"),
        (
            r#""image_condition_type": "token_replace", "patch_size_t": 2"#,
            "patch_size_t",
        ),
        (r#""qk_norm": "layer_norm""#, "qk_norm"),
        (r#""mlp_ratio": 0.0"#, "mlp_ratio"),
    ] {
        let error = format!("{:#}", Config::parse(&format!("{{{setting}}}")).unwrap_err());
        assert!(error.contains(key), "{setting}: {error}");
    }
}

#[test]
fn gradients_are_the_same_bits_whatever_is_kept_between_the_passes() {
    let answers = answers();
    for (kind, guided) in KINDS {
        let dit = load(kind, DType::F32);
        let mut input = input(&answers, kind, "pair", guided.then_some(6.0));
        let latents = Var::from_tensor(&input.latents).unwrap();
        input.latents = latents.as_tensor().clone();
        let loss = |prediction: &Tensor| prediction.sqr()?.mean_all();
        let gradient = |policy: ActivationPolicy| {
            let saved = policy.saved_activations(FreeMemory::Unknown);
            let passed = forward_backward(&dit, &input, &loss, std::slice::from_ref(&latents), saved).unwrap();
            let gradient = passed.gradients.into_iter().next().unwrap().unwrap();
            gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let all = gradient(ActivationPolicy::All);
        assert!(all.iter().any(|x| x.abs() > 1e-5), "{kind}");
        assert!(gradient(ActivationPolicy::Inputs) == all, "{kind}");
        assert!(gradient(ActivationPolicy::InputsAndAttention) == all, "{kind}");
    }
}
