//! Matrices that are stored in few bits while a dense checkpoint loads.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use vtrain::config::RunConfig;
use vtrain::models::cogvideox::dit::Dit as CogVideoX;
use vtrain::models::denoiser::{Denoiser, Input, Scalar, Scalars, TextEmbeds};
use vtrain::models::ltx_video::dit::Dit as LtxVideo;
use vtrain::models::wan::dit::Dit as Wan;
use vtrain::models::{self, FamilyName};
use vtrain::nn::Load;
use vtrain::nn::load::PartQuantization;
use vtrain::nn::storage::quantize::Quantization;

use super::fixture;
use super::models::{answers, input, relative, trained_by};

fn dense() -> std::path::PathBuf {
    fixture("../wan/wan-2.1-t2v/transformer")
}

fn stored_as(form: Quantization) -> Load {
    Load::new(DType::F32, &Device::Cpu).with_quantization(PartQuantization {
        transformer: Some(form),
        text_encoder: None,
    })
}

/// Modules of Wan that diffusers keeps in f32, and those that its layerwise casting skips.
const IN_F32: [&str; 6] = ["rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"];
const SKIPPED: [&str; 4] = ["patch_embedding", "condition_embedder", "norm", "proj_out"];

/// A checkpoint of the dense weights, rounded to what the form has of them.
fn rounded(form: Quantization, to: &Path) {
    let weights = dense().join("diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
    let round = |matrix: &Tensor| {
        let stored = form.store(matrix, &Device::Cpu).unwrap();
        stored.rows(0..stored.shape().0, DType::F32).unwrap()
    };
    let matrices: Vec<String> = tensors
        .keys()
        .filter(|name| tensors[*name].rank() == 2)
        .cloned()
        .collect();
    for name in matrices {
        let kept = match form {
            Quantization::Fp8 => IN_F32.iter().chain(&SKIPPED).any(|part| name.contains(part)),
            _ => IN_F32.iter().any(|part| name.contains(part)),
        };
        if kept || !name.ends_with(".weight") {
            continue;
        }
        let bias = name.replace(".weight", ".bias");
        if let (Quantization::Fp8, Some(bias)) = (form, tensors.get_mut(&bias)) {
            *bias = round(&bias.unsqueeze(0).unwrap()).squeeze(0).unwrap();
        }
        let matrix = tensors.get_mut(&name).unwrap();
        *matrix = round(matrix);
    }
    candle_core::safetensors::save(&tensors, to.join("diffusion_pytorch_model.safetensors")).unwrap();
    std::fs::copy(dense().join("config.json"), to.join("config.json")).unwrap();
}

#[test]
fn every_form_predicts_and_learns_what_its_rounded_weights_do() {
    let answers = answers();
    let plain = Wan::load(&dense(), &Load::new(DType::F32, &Device::Cpu)).unwrap();
    let exact = plain.forward(&input(&answers)).unwrap();
    for form in Quantization::all() {
        let name = form.name();
        let folder = tempfile::tempdir().unwrap();
        rounded(form, folder.path());
        let load = stored_as(form);
        let prediction = Wan::load(&dense(), &load).unwrap().forward(&input(&answers)).unwrap();
        let plain = Load::new(DType::F32, &Device::Cpu);
        let expected = Wan::load(folder.path(), &plain)
            .unwrap()
            .forward(&input(&answers))
            .unwrap();
        let off = relative(&prediction, &expected);
        assert!(off <= 1e-5, "{name}: {off:e}");
        let lost = relative(&prediction, &exact);
        println!("{name}: {lost:.1e} from the dense prediction");
        assert!(lost > 1e-4, "{name} stores nothing");
        let ((losses, gradients), (dense_losses, dense_gradients)) = (
            trained_by(&dense(), &load, &answers),
            trained_by(folder.path(), &plain, &answers),
        );
        for (ours, theirs) in losses.iter().zip(dense_losses) {
            assert!((ours - theirs).abs() <= 1e-4 * theirs, "{name}: {ours} {theirs}");
        }
        for (ours, theirs) in gradients.iter().zip(&dense_gradients) {
            let off = relative(ours, theirs);
            assert!(off <= 1e-4, "{name}: {off:e}");
        }
    }
}

#[test]
fn plain_fp8_predicts_what_diffusers_predicts_with_layerwise_casting() {
    let expected = candle_core::safetensors::load(fixture("layerwise.safetensors"), &Device::Cpu).unwrap();
    let recorded = |family: &str| {
        let path = fixture(&format!("../{family}/dit.safetensors"));
        candle_core::safetensors::load(path, &Device::Cpu).unwrap()
    };
    let folder = |family: &str, name: &str| fixture(&format!("../{family}/{name}/transformer"));
    let load = stored_as(Quantization::Fp8);
    let checks: [(&str, &str, &str, Box<dyn Denoiser>); 3] = [
        (
            "cogvideox",
            "cogvideox-2b",
            "native",
            Box::new(CogVideoX::load(&folder("cogvideox", "cogvideox-2b"), &load).unwrap()),
        ),
        (
            "ltx_video",
            "ltx-0.9.0",
            "plain",
            Box::new(LtxVideo::load(&folder("ltx_video", "ltx-0.9.0"), &load).unwrap()),
        ),
        (
            "wan",
            "wan-2.1-t2v",
            "tall",
            Box::new(Wan::load(&folder("wan", "wan-2.1-t2v"), &load).unwrap()),
        ),
    ];
    for (family, name, case, denoiser) in checks {
        let tensors = recorded(family);
        let prediction = denoiser.forward(&example(&tensors, &format!("{name}.{case}"))).unwrap();
        let key = format!("{name}.{case}");
        let off = relative(&prediction, &expected[&key]);
        let lost = relative(&tensors[&format!("{key}.out")], &expected[&key]);
        println!("{key}: {off:.1e}, of {lost:.1e} that casting changes");
        assert!(off <= 1e-5 && lost > 1e-3, "{key}: {off:e} of {lost:e}");
    }
}

pub fn example(tensors: &HashMap<String, Tensor>, key: &str) -> Input {
    let find = |what: &str| tensors.get(&format!("{key}.{what}")).cloned();
    let of = |what: &str| find(what).unwrap();
    let text = TextEmbeds {
        hidden: of("text"),
        mask: find("mask"),
        pooled: None,
    };
    let rates = find("rates").map(|rates| Scalars::of(Scalar::FrameRate, rates.to_vec1().unwrap()));
    Input {
        scalars: rates.unwrap_or_default(),
        ..Input::new(of("latents"), of("timestep"), text)
    }
}

#[test]
fn a_text_encoder_in_few_bits_embeds_what_its_rounded_weights_embed() {
    let checkpoint = fixture("../wan/wan-2.1-t2v");
    let embedded = |folder: &Path, form| {
        let load = Load::new(DType::F32, &Device::Cpu).with_quantization(PartQuantization {
            transformer: None,
            text_encoder: form,
        });
        let family = models::open(folder, FamilyName::Auto).unwrap();
        family
            .embed(&load, &[("A red ball rolls over a green floor", None)])
            .unwrap()
            .hidden
    };
    let dense = embedded(&checkpoint, None);
    for form in [Quantization::Int8, Quantization::from_name("nf4").unwrap()] {
        let copy = tempfile::tempdir().unwrap();
        crate::fuzz::copy(&checkpoint, copy.path());
        let path = copy.path().join("text_encoder/model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        for (name, tensor) in &mut tensors {
            let table = ["shared", "embed_tokens", "relative_attention_bias"];
            if tensor.rank() == 2 && !table.iter().any(|part| name.contains(part)) {
                let stored = form.store(tensor, &Device::Cpu).unwrap();
                *tensor = stored.rows(0..stored.shape().0, DType::F32).unwrap();
            }
        }
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let (ours, expected) = (embedded(&checkpoint, Some(form)), embedded(copy.path(), None));
        let (off, lost) = (relative(&ours, &expected), relative(&ours, &dense));
        assert!(off <= 1e-5 && lost > 1e-4, "{}: {off:e} of {lost:e}", form.name());
    }
}

#[test]
fn a_matrix_that_cannot_be_stored_is_named() {
    let folder = tempfile::tempdir().unwrap();
    crate::fuzz::copy(&dense(), folder.path());
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let spoilt = tensors.get_mut("blocks.1.attn1.to_k.weight").unwrap();
    *spoilt = (&*spoilt * f64::INFINITY).unwrap();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = Wan::load(folder.path(), &stored_as(Quantization::Int8))
        .map(drop)
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("blocks.1.attn1.to_k.weight as int8"), "{error}");
}

#[test]
fn a_run_file_says_how_weights_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.yaml");
    let checkpoint = fixture("../wan/wan-2.1-t2v");
    std::fs::write(
        &file,
        format!(
            "output_dir: out\nmodel: {{path: {}, dtype: f32, quantization_cache: none}}\ndatasets: [{{path: clips, buckets: [[9, 32, 48]]}}]\n",
            checkpoint.display()
        ),
    )
    .unwrap();
    let answers = answers();
    let computed = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let config = RunConfig::load(&file, &sets).unwrap();
        let family = models::open(&checkpoint, FamilyName::Auto).unwrap();
        let load = config.model.load(&Device::Cpu);
        let text = family
            .embed(&load, &[("A red ball rolls over a green floor", None)])
            .unwrap()
            .hidden;
        (text, family.denoiser(&load).unwrap().forward(&input(&answers)).unwrap())
    };
    let (text, prediction) = computed(&[]);
    let (same_text, other_prediction) = computed(&["model.quantization=nf4"]);
    let (other_text, same_prediction) = computed(&["model.text_encoder_quantization=int8"]);
    assert!(relative(&same_text, &text) == 0.0 && relative(&same_prediction, &prediction) == 0.0);
    assert!(relative(&other_text, &text) > 1e-4 && relative(&other_prediction, &prediction) > 1e-2);
    let error = RunConfig::load(&file, &["model.quantization=nf5".to_string()]).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("model.quantization") && error.contains("nf4"), "{error}");
}

#[test]
fn sampling_stores_weights_as_its_flags_say() {
    let folder = tempfile::tempdir().unwrap();
    let latents = |name: &str, more: &[&str]| {
        let file = folder.path().join(name).with_extension("safetensors");
        let done = Command::new(env!("CARGO_BIN_EXE_vtrain"))
            .args(
                "sample -qq --device cpu --dtype f32 --prompt ball --num-frames 5 --height 32 --width 48 --steps 2 --quantization-cache none"
                    .split(' '),
            )
            .arg("--model")
            .arg(fixture("../wan/wan-2.1-t2v"))
            .arg("--output")
            .arg(folder.path().join("clip.gif"))
            .arg("--output-latents")
            .arg(&file)
            .args(more)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        candle_core::safetensors::load(file, &Device::Cpu).unwrap()["latents"].clone()
    };
    let dense = latents("dense", &[]);
    for flag in ["--quantization", "--text-encoder-quantization"] {
        let off = relative(&latents("stored", &[flag, "nf4"]), &dense);
        assert!(off > 1e-5, "{flag}: {off:e}");
    }
}
