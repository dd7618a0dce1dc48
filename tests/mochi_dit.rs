//! Mochi's transformer against diffusers: `tests/fixtures/mochi/dit.safetensors` is written by
//! `scripts/fixtures/make_mochi.py`.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use vtrain::diffusers_config::Config as _;
use vtrain::models::denoiser::{Denoiser, Input, TextEmbeds};
use vtrain::models::mochi::dit::{Config, Dit};
use vtrain::nn::Load;
use vtrain::nn::load::PartQuantization;
use vtrain::nn::storage::quantize::Quantization;

use super::dit_answers::{Adapters, Answers, relative_error};

const NAME: &str = "mochi-1";
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

fn dit(answers: &Answers, dtype: DType, adapters: Option<Arc<Adapters>>) -> Dit {
    let load = Load {
        adapters: adapters.map(|adapters| adapters as _),
        ..Load::new(dtype, &Device::Cpu)
    };
    Dit::load(&answers.transformer(NAME), &load).unwrap()
}

fn input(answers: &Answers, case: &str) -> Input {
    let of = |what: &str| answers.get(&format!("{case}.{what}"));
    let text = TextEmbeds {
        hidden: of("text"),
        mask: Some(of("mask")),
        pooled: None,
    };
    Input::new(of("latents"), of("timestep"), text)
}

#[test]
fn captions_of_different_lengths_full_and_empty_ones_give_what_diffusers_predicts() {
    let answers = Answers::of("mochi");
    for (dtype, bound) in [(DType::F32, 1e-5), (DType::BF16, 4e-2)] {
        let dit = dit(&answers, dtype, None);
        for case in ["pair", "one", "none"] {
            let out = dit.forward(&input(&answers, case)).unwrap();
            assert_eq!(out.dtype(), dtype);
            let error = relative_error(&out, &answers.get(&format!("{case}.out")));
            println!("{case} {dtype:?}: {error:.1e}");
            assert!(error <= bound, "{case} {dtype:?}: {error:e}");
        }
    }
}

#[test]
fn adapters_of_both_streams_and_of_the_embedding_have_the_gradients_that_torch_gives_them() {
    let answers = Answers::of("mochi");
    let adapters = answers.adapters("training");
    let dit = dit(&answers, DType::F32, Some(adapters.clone()));
    answers.gradients_agree("training", &dit, &input(&answers, "training"), &adapters);
}

#[test]
fn a_caption_is_the_same_alone_and_beside_a_longer_one_whatever_stands_in_its_padding() {
    let answers = Answers::of("mochi");
    let dit = dit(&answers, DType::F32, None);
    let pair = input(&answers, "pair");
    let expected = dit.forward(&pair).unwrap().narrow(0, 1, 1).unwrap();
    let mut alone = Input {
        latents: pair.latents.narrow(0, 1, 1).unwrap(),
        timestep: pair.timestep.narrow(0, 1, 1).unwrap(),
        text: pair.text.narrow(1, 1).unwrap(),
        ..pair.clone()
    };
    let same = |input: &Input| relative_error(&dit.forward(input).unwrap(), &expected) <= 2e-6;
    assert!(same(&alone));
    let mask = alone.text.mask.clone().unwrap().unsqueeze(2).unwrap();
    let noise = mask.affine(-7.0, 7.0).unwrap();
    alone.text.hidden = alone.text.hidden.broadcast_add(&noise).unwrap();
    assert!(same(&alone));
    alone.text.mask = None; // the padding counts
    assert!(!same(&alone));
}

#[test]
fn the_last_block_reads_the_text_and_the_first_changes_it() {
    let answers = Answers::of("mochi");
    let dit = dit(&answers, DType::F32, None);
    let mut state = dit.embed(&input(&answers, "pair")).unwrap();
    let mut renewed = Vec::new();
    for block in 0..dit.num_blocks() {
        let next = dit.block(block, &state).unwrap();
        let new = |tensors: (&Tensor, &Tensor)| tensors.0.id() != tensors.1.id();
        renewed.push(next.tensors().iter().zip(&state.tensors()).map(new).collect::<Vec<_>>());
        state = next;
    }
    // Clip, timestep, text.
    assert_eq!(renewed, [[true, false, true], [true, false, false]]);
}

/// Angles = positions x frequencies, and positions in space are scaled to 192 x 192: twice the rows and columns leave the
/// corners where they were, up to half a token.
#[test]
fn rotations_follow_the_learned_frequencies_head_by_head() {
    let answers = Answers::of("mochi");
    let dit = dit(&answers, DType::F32, None);
    let weights = answers.transformer(NAME).join(WEIGHTS);
    let weights = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
    let frequencies: Vec<Vec<Vec<f32>>> = weights["pos_frequencies"].to_vec3().unwrap(); // (3, H, K / 2)
    let padded = input(&answers, "pair");
    let trimmed = Input {
        text: padded.text.trimmed().unwrap(),
        ..padded.clone()
    };
    // The network itself cuts nothing off: that would make the host wait for a GPU.
    let all = dit
        .embed(&padded)
        .unwrap()
        .fixed
        .rotary
        .as_ref()
        .unwrap()
        .cos()
        .dims()
        .to_vec();
    assert_eq!(all[0], 18 + 9);
    let state = dit.embed(&trimmed).unwrap();
    let rotary = state.fixed.rotary.as_ref().unwrap();
    let (cos, sin) = (
        rotary.cos().to_vec2::<f32>().unwrap(),
        rotary.sin().to_vec2::<f32>().unwrap(),
    );
    let [frames, rows, columns] = state.fixed.grid;
    assert_eq!(([frames, rows, columns], cos.len()), ([3, 2, 3], 18 + 7)); // the text's own tokens do not turn
    let scale = (192f64 * 192.0 / 6.0).sqrt();
    for (token, (cos, sin)) in cos.iter().zip(&sin).enumerate() {
        let at = [
            (token / 6) as f64,
            ((token / 3 % 2) as f64 - 0.5) * scale,
            ((token % 3) as f64 - 1.0) * scale,
        ];
        for (i, (cos, sin)) in cos.iter().zip(sin).enumerate() {
            let angle = |axis: usize| at[axis] * f64::from(frequencies[axis][i / 3][i % 3]);
            let angle: f64 = if token < 18 { (0..3).map(angle).sum() } else { 0.0 };
            assert!((f64::from(*cos) - angle.cos()).abs() < 1e-5, "{token} {i}");
            assert!((f64::from(*sin) - angle.sin()).abs() < 1e-5, "{token} {i}");
        }
    }
}

#[test]
fn matrices_in_four_bits_predict_what_their_rounded_numbers_predict() {
    let answers = Answers::of("mochi");
    let (form, folder) = (Quantization::from_name("nf4").unwrap(), tempfile::tempdir().unwrap());
    let own = answers.transformer(NAME);
    let mut tensors = candle_core::safetensors::load(own.join(WEIGHTS), &Device::Cpu).unwrap();
    for (_, matrix) in tensors.iter_mut().filter(|(_, tensor)| tensor.rank() == 2) {
        let stored = form.store(matrix, &Device::Cpu).unwrap();
        *matrix = stored.rows(0..stored.shape().0, DType::F32).unwrap();
    }
    candle_core::safetensors::save(&tensors, folder.path().join(WEIGHTS)).unwrap();
    std::fs::copy(own.join("config.json"), folder.path().join("config.json")).unwrap();
    let load = Load::new(DType::F32, &Device::Cpu);
    let rounded = Dit::load(folder.path(), &load).unwrap();
    let stored = load.with_quantization(PartQuantization {
        transformer: Some(form),
        text_encoder: None,
    });
    let stored = Dit::load(&own, &stored).unwrap();
    let input = input(&answers, "pair");
    let prediction = stored.forward(&input).unwrap();
    let off = relative_error(&prediction, &rounded.forward(&input).unwrap());
    let lost = relative_error(&prediction, &answers.get("pair.out"));
    assert!(off <= 1e-5 && lost > 1e-2, "{off:e} of {lost:e}");
}

#[test]
fn configs_and_inputs_that_do_not_fit_are_refused_by_key() {
    let answers = Answers::of("mochi");
    let error = |change: &dyn Fn(&mut Input)| {
        let mut input = input(&answers, "one");
        change(&mut input);
        dit(&answers, DType::F32, None).forward(&input).unwrap_err().to_string()
    };
    let wide = error(&|input| input.latents = input.latents.narrow(1, 0, 4).unwrap());
    assert!(wide.contains("4 channels for a model of 5"), "{wide}");
    let odd = error(&|input| input.latents = input.latents.narrow(3, 0, 5).unwrap());
    assert!(odd.contains("5 latent rows do not fall into patches of 2"), "{odd}");
    let pooled = error(&|input| input.text.pooled = Some(input.text.hidden.narrow(1, 0, 1).unwrap()));
    assert!(pooled.contains("takes no pooled text"), "{pooled}");
    for (setting, key) in [
        (r#""attention_head_dim": 7"#, "attention_head_dim"),
        (r#""text_embed_dim": 20"#, "text_embed_dim"),
        (r#""qk_norm": "layer_norm""#, "qk_norm"),
        (r#""activation_fn": "gelu""#, "activation_fn"),
        (r#""max_sequence_length": 512"#, "max_sequence_length"),
        (r#""out_channels": 0"#, "out_channels"),
        (r#""num_layers": 0"#, "num_layers"),
        (r#""rope_theta": 1.0"#, "rope_theta"),
    ] {
        let error = format!("{:#}", Config::parse(&format!("{{{setting}}}")).unwrap_err());
        assert!(error.contains(key), "{setting}: {error}");
    }
}
