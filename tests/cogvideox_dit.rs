//! CogVideoX's transformer against diffusers. The files in `tests/fixtures/cogvideox` are written by
//! `scripts/fixtures/make_cogvideox.py`; the queries are in `scripts/fixtures/cogvideox/{dit,lora}.py`.

mod gradients; // against PEFT, finite differences, and segment by segment

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use vtrain::models::cogvideox::dit::Dit;
use vtrain::models::denoiser::{Denoiser, Input, Scalar, Scalars, State};
use vtrain::nn::Load;
use vtrain::nn::adapter::Adapt;
use vtrain::rng::Rng;

const CASES: [(&str, &str); 9] = [
    ("cogvideox-2b", "native"),
    ("cogvideox-2b", "other-size"),
    ("cogvideox-5b", "wide"),
    ("cogvideox-5b", "tall"),
    ("cogvideox-5b-i2v", "native"),
    ("cogvideox-5b-i2v", "fewer-frames"),
    ("cogvideox-1.5-5b", "native"),
    ("cogvideox-1.5-5b", "smaller"),
    ("cogvideox-1.5-5b-i2v", "smaller"),
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox")
}

fn load(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join(name), &Device::Cpu).unwrap()
}

fn dit(name: &str, dtype: DType, adapt: Option<Arc<dyn Adapt>>) -> Dit {
    Dit::load(
        &fixtures().join(name).join("transformer"),
        &Load {
            adapters: adapt,
            ..Load::new(dtype, &Device::Cpu)
        },
    )
    .unwrap()
}

fn input(answers: &HashMap<String, Tensor>, key: &str) -> Input {
    let of = |what: &str| answers[&format!("{key}.{what}")].clone();
    Input {
        scalars: answers.get(&format!("{key}.ofs")).map(ofs).unwrap_or_default(),
        ..Input::new(of("latents"), of("timestep"), of("text"))
    }
}

fn ofs(recorded: &Tensor) -> Scalars {
    let values = recorded.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
    Scalars::of(Scalar::Ofs, values)
}

fn norm(x: &Tensor) -> f64 {
    let x = x.to_dtype(DType::F64).unwrap();
    x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

/// The text's tokens of a state, (B, L, D).
fn text(state: &State) -> Tensor {
    state.hidden.narrow(1, 0, state.fixed.parts[0]).unwrap()
}

/// |a - b| / |b|
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_dtype(DType::F64).unwrap(), b.to_dtype(DType::F64).unwrap());
    assert_eq!(a.dims(), b.dims());
    norm(&(a - &b).unwrap()) / norm(&b)
}

fn randn(seed: u64, shape: &[usize]) -> Tensor {
    let values = Rng::new(seed).randn(shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn every_variant_predicts_what_diffusers_predicts() {
    let answers = load("dit.safetensors");
    for (name, case) in CASES {
        let (key, dit) = (format!("{name}.{case}"), dit(name, DType::F32, None));
        let input = input(&answers, &key);
        let equal = |what: &str, found: &Tensor| {
            if let Some(expected) = answers.get(&format!("{key}.{what}")) {
                let error = relative_error(found, expected);
                println!("{key}.{what}: {error:.1e}");
                assert!(error <= 1e-5, "{key}.{what}: {error:e}");
            }
        };
        let stem = dit.embed(&input).unwrap();
        equal("tokens", &stem.video().unwrap());
        if input.scalars == Scalars::default() {
            equal("time_embedding", &stem.time);
        }
        if let Some(rotary) = &stem.fixed.rotary {
            let twice = |table: &Tensor| Tensor::stack(&[table, table], 2).unwrap().flatten(1, 2).unwrap();
            equal("rope.cos", &twice(rotary.cos()));
            equal("rope.sin", &twice(rotary.sin()));
        }
        let behind = dit.block(0, &stem).unwrap();
        equal("block0", &behind.video().unwrap());
        equal("block0.text", &text(&behind));
        equal("out", &dit.forward(&input).unwrap());
        assert!(dit.block(dit.num_blocks(), &stem).is_err());
    }
}

/// Returns the embedding of the checkpoint `name` with other settings that leave its weights as they are.
fn stem_with(name: &str, changes: &[(&str, usize)], latents: &Tensor, tokens: usize) -> State {
    let folder = tempfile::tempdir().unwrap();
    let from = fixtures().join(name).join("transformer");
    for entry in std::fs::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in changes {
        json[*key] = (*value).into();
    }
    std::fs::write(&path, json.to_string()).unwrap();
    let dit = Dit::load(folder.path(), &Load::new(DType::F32, &Device::Cpu)).unwrap();
    let input = Input::new(
        latents.clone(),
        Tensor::new(&[1i64], &Device::Cpu).unwrap(),
        Tensor::zeros((1, tokens, 24), DType::F32, &Device::Cpu).unwrap(),
    );
    dit.embed(&input).unwrap()
}

fn sum(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().sum_all().unwrap().to_scalar().unwrap()
}

#[test]
fn clips_of_real_sizes_lie_on_the_grid_where_diffusers_puts_them() {
    // base = (30, 45)
    // crops = get_resize_crop_region_for_grid((h, w), base[1], base[0])
    // cos, sin = get_3d_rotary_pos_embed(embed_dim=16, crops_coords=crops, grid_size=(h, w), temporal_size=f)
    // cos[:, ::2].double().sum(), sin[:, ::2].double().sum(), sin[-1, ::2].double().sum()
    for (grid, cos, sin, last) in [
        ([13, 30, 45], 73496.8185, 25475.4974, 0.960038),
        ([2, 30, 30], 8805.7963, 3415.0068, 1.472700),
        ([2, 24, 48], 11524.4723, 3957.7022, 2.670610),
        ([1, 48, 30], 7461.8131, 2193.4321, 0.743736),
        ([2, 17, 31], 5256.2819, 1844.5309, 2.679500),
        ([2, 1, 1], 13.1126, 3.5904, 2.220916),
    ] {
        let [frames, height, width] = grid;
        let latents = Tensor::zeros((1, frames, 4, 2 * height, 2 * width), DType::F32, &Device::Cpu).unwrap();
        let state = stem_with(
            "cogvideox-5b",
            &[("sample_height", 60), ("sample_width", 90)],
            &latents,
            3,
        );
        assert_eq!(state.fixed.grid, grid);
        let rotary = state.fixed.rotary.as_ref().unwrap();
        let end = rotary.sin().narrow(0, frames * height * width - 1, 1).unwrap();
        let found = [sum(rotary.cos()), sum(rotary.sin()), sum(&end)];
        for (a, b) in found.into_iter().zip([cos, sin, last]) {
            assert!((a - b).abs() <= 1e-5 * b.abs() + 1e-4, "{grid:?}: {a} {b}");
        }
        let x = randn(4, &[1, 3 + frames * height * width, 1, 16]);
        let turned = rotary.apply(&x).unwrap();
        let still = |x: &Tensor| {
            x.narrow(1, 0, 3)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        assert_eq!(still(&turned), still(&x), "text does not turn");
    }
}

#[test]
fn sines_and_cosines_are_added_at_the_size_of_the_clip() {
    // p = get_3d_sincos_pos_embed(32, (45, 30), 13, 1.875, 1.0); p.double().sum(), p[-1, -1].double().sum()
    let latents = Tensor::zeros((1, 13, 4, 60, 90), DType::F32, &Device::Cpu).unwrap();
    let hidden = stem_with("cogvideox-2b", &[], &latents, 226).video().unwrap();
    // Of latents that are all zero only the bias of the patches is left.
    let bias = load("cogvideox-2b/transformer/diffusion_pytorch_model.safetensors")["patch_embed.proj.bias"].clone();
    let positions = hidden.broadcast_sub(&bias).unwrap();
    assert!((sum(&positions) / 224356.05412234634 - 1.0).abs() <= 1e-5);
    let last = positions.narrow(1, positions.dim(1).unwrap() - 1, 1).unwrap();
    assert!((sum(&last) - 9.334798270870191).abs() <= 1e-4);
}

#[test]
fn bf16_stays_close() {
    let answers = load("dit.safetensors");
    for (name, case) in CASES {
        let key = format!("{name}.{case}");
        let out = dit(name, DType::BF16, None).forward(&input(&answers, &key)).unwrap();
        assert_eq!(out.dtype(), DType::BF16);
        let error = relative_error(&out, &answers[&format!("{key}.out")]);
        println!("{key}: {error:.1e}");
        assert!(error <= 3e-2, "{key}: {error:e}");
    }
}

#[test]
fn clips_of_odd_length_are_padded_to_whole_patches() {
    assert_eq!(
        [1, 2, 12, 13].map(|f| dit("cogvideox-2b", DType::F32, None).config().additional_frames(f)),
        [0; 4]
    );
    let deep = dit("cogvideox-1.5-5b", DType::F32, None);
    assert_eq!([1, 2, 12, 13].map(|f| deep.config().additional_frames(f)), [1, 0, 0, 1]);
}

#[test]
fn an_input_that_does_not_fit_is_refused_in_words() {
    let answers = load("dit.safetensors");
    let refused = |name: &str, key: &str, change: &dyn Fn(&mut Input), said: &str| {
        let mut input = input(&answers, key);
        change(&mut input);
        let error = dit(name, DType::F32, None).forward(&input).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    };
    let latents = |shape: [usize; 5]| move |input: &mut Input| input.latents = randn(0, &shape);
    let wide = "cogvideox-5b.wide";
    refused("cogvideox-5b", wide, &latents([2, 3, 8, 4, 6]), "8 channels");
    refused("cogvideox-5b", wide, &latents([2, 3, 4, 5, 6]), "5 latent rows");
    refused("cogvideox-5b", wide, &latents([1, 3, 4, 4, 6]), "1 clips, 2 texts");
    refused(
        "cogvideox-5b",
        wide,
        &|input| input.text = randn(0, &[2, 11, 23]).into(),
        "width 23",
    );
    refused(
        "cogvideox-5b",
        wide,
        &|input| input.scalars = Scalars::of(Scalar::Ofs, vec![2.0]),
        "no ofs",
    );
    refused(
        "cogvideox-1.5-5b",
        "cogvideox-1.5-5b.smaller",
        &latents([2, 3, 4, 4, 6]),
        "3 latent frames",
    );
    refused(
        "cogvideox-1.5-5b",
        "cogvideox-1.5-5b.smaller",
        &latents([2, 2, 4, 8, 6]),
        "larger",
    );
    refused(
        "cogvideox-1.5-5b-i2v",
        "cogvideox-1.5-5b-i2v.smaller",
        &|input| input.scalars = Scalars::default(),
        "its pipeline gives 2.0",
    );
    refused(
        "cogvideox-5b-i2v",
        "cogvideox-5b-i2v.native",
        &latents([2, 3, 8, 6, 4]),
        "learned positions",
    );
    refused(
        "cogvideox-5b-i2v",
        "cogvideox-5b-i2v.native",
        &|input| input.text = randn(0, &[2, 9, 24]).into(),
        "9 text",
    );
}

#[test]
fn a_config_that_is_not_understood_is_named_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let original = std::fs::read_to_string(fixtures().join("cogvideox-5b/transformer/config.json")).unwrap();
    for (key, value, said) in [
        ("_class_name", "WanTransformer3DModel".into(), "_class_name"),
        ("window_size", 4.into(), "window_size"),
        ("activation_fn", "geglu".into(), "activation_fn"),
        ("num_layers", 0.into(), "num_layers"),
        ("attention_head_dim", 20.into(), "attention_head_dim"),
        ("patch_size", "two".into(), "patch_size"),
        ("dropout", 0.1.into(), "dropout"),
        ("ofs_embed_dim", 5.into(), "ofs_embed_dim"),
    ] {
        let mut json: serde_json::Value = serde_json::from_str(&original).unwrap();
        json[key] = value;
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        let error = Dit::load(folder.path(), &Load::new(DType::F32, &Device::Cpu)).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("config.json") && error.contains(said), "{error}");
    }
}

#[test]
fn a_state_is_rebuilt_only_from_tensors_that_fit() {
    let answers = load("dit.safetensors");
    let dit = dit("cogvideox-5b", DType::F32, None);
    let state = dit.embed(&input(&answers, "cogvideox-5b.wide")).unwrap();
    assert!(state.with_tensors(state.tensors()).is_ok());
    assert!(state.with_tensors(state.tensors()[1..].to_vec()).is_err());
    assert!(state.with_tensors(state.tensors().into_iter().rev().collect()).is_err());
}

#[test]
fn a_timestep_becomes_the_sines_and_cosines_of_diffusers_with_either_shift() {
    // from diffusers.models.embeddings import get_timestep_embedding as g
    // g(torch.tensor([250.0]), 7, flip_sin_to_cos=True, downscale_freq_shift=shift).tolist()
    let unshifted = [0.240988, 0.571554, 0.858423, -0.970528, -0.820565, 0.512942, 0.0];
    let shifted = [0.240988, -0.801144, 0.999687, -0.970528, 0.598472, 0.0249974, 0.0];
    for (freq_shift, expected) in [(0.0, unshifted), (1.0, shifted)] {
        let sinusoid = vtrain::nn::embed::Sinusoid {
            width: 7,
            flip_sin_to_cos: true,
            freq_shift,
        };
        let timestep = Tensor::new(&[250f32], &Device::Cpu).unwrap();
        let found: Vec<f32> = sinusoid
            .forward(&timestep)
            .unwrap()
            .squeeze(0)
            .unwrap()
            .to_vec1()
            .unwrap();
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 2e-5, "{freq_shift}: {found:?}");
        }
    }
}
