//! LTX-Video's transformer against diffusers and PEFT. The files in `tests/fixtures/ltx_video` are written by
//! `scripts/fixtures/make_ltx_video.py`; the queries are in `scripts/fixtures/{ltx_video/dit,dit_lora}.py`.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use vtrain::models::denoiser::{Denoiser, Input, Scalar, Scalars, TextEmbeds};
use vtrain::models::ltx_video::dit::Dit;
use vtrain::nn::Load;
use vtrain::nn::Weights;
use vtrain::nn::adapter::Adapt;

use crate::dit_answers::{Answers, relative_error};

const NAME: &str = "ltx-0.9.0";
const CASES: [&str; 4] = ["plain", "frames", "rates", "still"];

fn answers() -> Answers {
    Answers::of("ltx_video")
}

fn dit(dtype: DType, adapt: Option<Arc<dyn Adapt>>) -> Dit {
    Dit::load(
        &answers().transformer(NAME),
        &Load {
            adapters: adapt,
            ..Load::new(dtype, &Device::Cpu)
        },
    )
    .unwrap()
}

fn input(answers: &Answers, key: &str) -> Input {
    let of = |what: &str| answers.get(&format!("{key}.{what}"));
    let text = TextEmbeds {
        hidden: of("text"),
        mask: answers.find(&format!("{key}.mask")),
        pooled: None,
    };
    Input {
        scalars: Scalars::of(Scalar::FrameRate, of("rates").to_vec1().unwrap()),
        ..Input::new(of("latents"), of("timestep"), text)
    }
}

#[test]
fn predictions_are_those_of_diffusers() {
    let (answers, dit) = (answers(), dit(DType::F32, None));
    for case in CASES {
        let key = format!("{NAME}.{case}");
        let out = dit.forward(&input(&answers, &key)).unwrap();
        let error = relative_error(&out, &answers.get(&format!("{key}.out")));
        println!("{key}: {error:.1e}");
        assert!(error <= 1e-5, "{key}: {error:e}");
    }
}

#[test]
fn clips_of_real_sizes_stand_where_diffusers_puts_them() {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "num_attention_heads": 8, "cross_attention_dim": 512, "num_layers": 1, "caption_channels": 4, "in_channels": 4,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights = Weights::random(&Load::new(DType::F32, &Device::Cpu));
    let dit = Dit::load_from(folder.path(), weights).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    // cos, sin = LTXVideoRotaryPosEmbed(512)(torch.zeros(1, 1, 1), f, h, w, (8 / rate, 32, 32))
    // cos[0, :, ::2].double().sum(), sin[0, :, ::2].double().sum(), sin[0, -1, ::2].double().sum()
    for (grid, rate, sums) in [
        ([3, 8, 12], 25.0, [-1309.7943, -5871.2584, -22.4172]),
        ([7, 16, 22], 24.0, [-8794.0725, -37439.2311, -4.8674]),
    ] {
        let [frames, rows, columns] = grid;
        let input = Input {
            scalars: Scalars::of(Scalar::FrameRate, vec![rate]),
            ..Input::new(zeros(&[1, 4, frames, rows, columns]), zeros(&[1]), zeros(&[1, 2, 4]))
        };
        let state = dit.embed(&input).unwrap();
        let rotary = state.fixed.rotary.as_ref().unwrap();
        let last = rotary.sin().narrow(0, frames * rows * columns - 1, 1).unwrap();
        let sum = |x: &Tensor| {
            x.to_dtype(DType::F64)
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f64>()
                .unwrap()
        };
        for (found, wanted) in [sum(rotary.cos()), sum(rotary.sin()), sum(&last)].into_iter().zip(sums) {
            // A frequency's last digit turns the farthest places by a thousandth.
            assert!(
                (found - wanted).abs() <= 1e-4 * wanted.abs() + 5e-3,
                "{grid:?}: {found} {wanted}"
            );
        }
    }
}

#[test]
fn bf16_stays_close() {
    let (answers, dit) = (answers(), dit(DType::BF16, None));
    for case in CASES {
        let key = format!("{NAME}.{case}");
        let out = dit.forward(&input(&answers, &key)).unwrap();
        assert_eq!(out.dtype(), DType::BF16);
        let error = relative_error(&out, &answers.get(&format!("{key}.out")));
        println!("{key}: {error:.1e}");
        assert!(error <= 5e-2, "{key}: {error:e}");
    }
}

#[test]
fn adapters_have_the_gradients_that_torch_gives_them() {
    let answers = answers();
    let adapters = answers.adapters("training");
    let dit = dit(DType::F32, Some(adapters.clone()));
    answers.gradients_agree("training", &dit, &input(&answers, "training"), &adapters);
}

#[test]
fn a_timestep_for_a_clip_is_one_for_each_of_its_frames() {
    let (answers, dit) = (answers(), dit(DType::F32, None));
    let key = format!("{NAME}.plain");
    let mut input = input(&answers, &key);
    let (batch, frames) = (input.latents.dim(0).unwrap(), input.latents.dim(2).unwrap());
    input.timestep = input.timestep.reshape((batch, 1)).unwrap().repeat((1, frames)).unwrap();
    let error = relative_error(&dit.forward(&input).unwrap(), &answers.get(&format!("{key}.out")));
    assert!(error <= 1e-5, "{error:e}");
}

#[test]
fn blocks_renew_the_tokens_and_nothing_else() {
    let (answers, dit) = (answers(), dit(DType::F32, None));
    let stem = dit.embed(&input(&answers, &format!("{NAME}.frames"))).unwrap();
    let behind = dit.block(0, &stem).unwrap();
    let new = behind
        .tensors()
        .iter()
        .zip(stem.tensors())
        .map(|(new, old)| new.id() != old.id())
        .collect::<Vec<_>>();
    assert_eq!(new, [true, false, false, false]); // hidden, time, modulation, text
    assert!(dit.block(dit.num_blocks(), &stem).is_err());
}

#[test]
fn an_input_that_does_not_fit_is_refused_in_words() {
    let (answers, dit) = (answers(), dit(DType::F32, None));
    let refused = |change: &dyn Fn(&mut Input), said: &str| {
        let mut input = input(&answers, &format!("{NAME}.plain"));
        change(&mut input);
        let error = dit.forward(&input).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    refused(
        &|input| input.latents = zeros(&[2, 4, 2, 3, 4]),
        "4 channels for a model of 8",
    );
    refused(&|input| input.latents = zeros(&[2, 8, 2, 0, 4]), "without any numbers");
    refused(
        &|input| input.latents = zeros(&[3, 8, 2, 3, 4]),
        "3 clips of 2 latent frames, 2 texts",
    );
    refused(&|input| input.timestep = zeros(&[2, 3]), "timesteps [2, 3]");
    refused(&|input| input.text.hidden = zeros(&[2, 7, 8]), "width 8");
    refused(&|input| input.text.mask = Some(zeros(&[2, 6])), "mask [2, 6]");
    refused(&|input| input.image = Some(zeros(&[2, 1, 1])), "takes no encoded image");
    refused(&|input| input.scalars = Scalars::default(), "needs their frame rates");
    refused(
        &|input| input.scalars = Scalars::of(Scalar::FrameRate, vec![25.0; 3]),
        "frame rates [25.0, 25.0, 25.0] for 2 clips",
    );
    refused(
        &|input| input.scalars = Scalars::of(Scalar::FrameRate, vec![25.0, 0.0]),
        "frame rates",
    );
}

#[test]
fn a_config_that_is_not_understood_is_named_with_its_key() {
    let answers = answers();
    for (key, value) in [
        ("_class_name", "WanTransformer3DModel".into()),
        ("audio_in_channels", 4.into()),
        ("activation_fn", "geglu".into()),
        ("qk_norm", "layer_norm".into()),
        ("patch_size", 2.into()),
        ("patch_size_t", 0.into()),
        ("num_layers", 0.into()),
        ("in_channels", (1u64 << 40).into()),
        ("attention_head_dim", 1.into()),
        ("cross_attention_dim", 30.into()),
        ("norm_eps", 0.into()),
    ] {
        let load = |folder: &std::path::Path| Dit::load(folder, &Load::new(DType::F32, &Device::Cpu));
        let error = answers.refusal(NAME, (key, value), load);
        assert!(error.contains("config.json") && error.contains(key), "{key}: {error}");
    }
}
