//! Weights that were saved as a variant (`save_pretrained(variant="fp16")`): alone, next to the usual ones, in shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use vtrain::data::cache::Cache;
use vtrain::hub::layout::{self, Kind, WeightFile};
use vtrain::models::{self, FamilyName};
use vtrain::nn::Load;
use vtrain::nn::{WeightFolder, Weights};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

/// The small LTX-Video.
fn checkpoint(at: &Path) -> PathBuf {
    let model = at.join("model");
    copy(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx_video/ltx-0.9.5"),
        &model,
    );
    model
}

const USUAL: &str = "diffusion_pytorch_model.safetensors";
const FP16: &str = "diffusion_pytorch_model.fp16.safetensors";

fn vtrain(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain")).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sample(model: &Path, more: &[&str]) -> Output {
    let out = model.with_file_name("out.gif");
    let mut args = vec![
        "sample",
        "--model",
        model.to_str().unwrap(),
        "--prompt",
        "x",
        "--num-frames",
        "9",
        "--height",
        "64",
    ];
    args.extend([
        "--width",
        "96",
        "--steps",
        "1",
        "--guidance-scale",
        "1",
        "--dtype",
        "f32",
        "--device",
        "cpu",
    ]);
    args.extend(["--output", out.to_str().unwrap()]);
    args.extend(more);
    vtrain(&args)
}

/// One tensor that says which file it came from.
fn mark(path: &Path, number: f32) {
    write(path, &[("x", number)]);
}

fn write(path: &Path, numbers: &[(&str, f32)]) {
    let tensors = numbers
        .iter()
        .map(|(name, number)| (*name, Tensor::new(&[*number], &Device::Cpu).unwrap()));
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn marked(folder: impl Into<WeightFolder>) -> anyhow::Result<f32> {
    let weights = Weights::open(folder, DType::F32, &Device::Cpu)?;
    Ok(weights.get(1, "x")?.to_vec1::<f32>()?[0])
}

#[test]
fn names_of_diffusers_say_which_variant_and_which_part_they_are() {
    let cases = [
        ("diffusion_pytorch_model.safetensors", None, Kind::Whole),
        ("model.fp16.safetensors", Some("fp16"), Kind::Whole),
        ("model-00001-of-00002.safetensors", None, Kind::Shard),
        ("model.bf16-00001-of-00002.safetensors", Some("bf16"), Kind::Shard),
        ("model-00002-of-00002.fp16.safetensors", Some("fp16"), Kind::Shard),
        ("model.safetensors.index.json", None, Kind::Index),
        ("model.safetensors.index.fp16.json", Some("fp16"), Kind::Index),
        ("model.safetensors.fp16.index.json", Some("fp16"), Kind::Index),
        ("model.fp16.safetensors.index.json", Some("fp16"), Kind::Index),
    ];
    for (name, variant, kind) in cases {
        assert_eq!(WeightFile::of(name), Some(WeightFile { variant, kind }), "{name}");
    }
    for name in ["config.json", "model.fp16.bin", "model.safetensors.json", "safetensors"] {
        assert_eq!(WeightFile::of(name), None, "{name}");
    }
}

#[test]
fn a_variant_is_read_where_it_is_wanted_or_where_there_is_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let wanted = |variant: &str| WeightFolder::new(at, Some(variant));
    mark(&at.join(FP16), 16.0);
    assert_eq!(marked(at).unwrap(), 16.0);
    mark(&at.join(USUAL), 32.0);
    assert_eq!(marked(at).unwrap(), 32.0);
    assert_eq!(marked(wanted("fp16")).unwrap(), 16.0);
    // diffusers reads a part as usual that lacks the variant.
    assert_eq!(marked(wanted("bf16")).unwrap(), 32.0);
    mark(&at.join("diffusion_pytorch_model.bf16.safetensors"), 17.0);
    assert_eq!(marked(at).unwrap(), 32.0);
    std::fs::remove_file(at.join(USUAL)).unwrap();
    let message = format!("{:#}", marked(at).unwrap_err());
    assert!(
        message.contains("model.variant") && message.contains("bf16, fp16"),
        "{message}"
    );
    assert_eq!(marked(wanted("bf16")).unwrap(), 17.0);
    let message = format!("{:#}", marked(wanted("fp8")).unwrap_err());
    assert!(
        message.contains("neither as the variant fp8 nor without one") && message.contains("bf16, fp16"),
        "{message}"
    );
}

#[test]
fn the_only_variant_is_no_substitute_for_another_that_was_asked_for() {
    let files = || ["config.json", "model.fp16.safetensors"].into_iter();
    assert_eq!(layout::variant(files(), None).unwrap(), Some("fp16"));
    assert_eq!(layout::variant(files(), Some("fp16")).unwrap(), Some("fp16"));
    let message = layout::variant(files(), Some("bf16")).unwrap_err().to_string();
    assert!(
        message.contains("the variant bf16") && message.contains("as fp16"),
        "{message}"
    );
}

#[test]
fn shards_of_a_variant_go_by_its_own_index() {
    for index in [
        "model.safetensors.index.fp16.json",
        "model.safetensors.fp16.index.json",
        "model.fp16.safetensors.index.json",
    ] {
        for shards in [
            ["model.fp16-00001-of-00002", "model.fp16-00002-of-00002"],
            ["model-00001-of-00002.fp16", "model-00002-of-00002.fp16"],
        ] {
            let folder = tempfile::tempdir().unwrap();
            let at = folder.path();
            let [first, second] = shards.map(|name| format!("{name}.safetensors"));
            write(&at.join(&first), &[("x", 16.0)]);
            write(&at.join(&second), &[("y", 17.0)]);
            let loose = format!("{:#}", marked(at).unwrap_err());
            assert!(loose.contains("2 safetensors files without an index"), "{loose}");
            let map = serde_json::json!({"weight_map": {"x": first, "y": second}});
            std::fs::write(at.join(index), map.to_string()).unwrap();
            // Next to usual shards with an index of their own.
            for usual in [false, true] {
                if usual {
                    write(&at.join("model-00001-of-00001.safetensors"), &[("x", 32.0)]);
                    let map = serde_json::json!({"weight_map": {"x": "model-00001-of-00001.safetensors"}});
                    std::fs::write(at.join("model.safetensors.index.json"), map.to_string()).unwrap();
                    assert_eq!(marked(at).unwrap(), 32.0);
                }
                let wanted = WeightFolder::new(at, Some("fp16"));
                assert_eq!(marked(&wanted).unwrap(), 16.0, "{index} {first}");
                assert_eq!(wanted.files().unwrap().paths.len(), 2);
            }
            std::fs::remove_file(at.join(&second)).unwrap();
            let message = format!("{:#}", marked(WeightFolder::new(at, Some("fp16"))).unwrap_err());
            assert!(message.contains(&format!("the shard {second} is missing")), "{message}");
        }
    }
}

#[test]
fn a_checkpoint_of_variants_alone_is_sampled_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let model = checkpoint(folder.path());
    let usual = sample(&model, &[]);
    assert!(usual.status.success(), "{}", said(&usual));
    for part in ["transformer", "vae"] {
        std::fs::rename(model.join(part).join(USUAL), model.join(part).join(FP16)).unwrap();
    }
    let before = std::fs::read(folder.path().join("out.gif")).unwrap();
    let alone = sample(&model, &[]);
    assert!(alone.status.success(), "{}", said(&alone));
    assert!(
        said(&alone).contains("transformer: read as the variant fp16, the only one there"),
        "{}",
        said(&alone)
    );
    assert!(std::fs::read(folder.path().join("out.gif")).unwrap() == before);
    let chosen = sample(&model, &["--variant", "fp16"]);
    assert!(chosen.status.success(), "{}", said(&chosen));
    assert!(!said(&chosen).contains("the only one there"), "{}", said(&chosen));
    let misspelt = sample(&model, &["--variant", "pf16"]);
    assert_eq!(misspelt.status.code(), Some(4));
    let message = said(&misspelt);
    assert!(
        message.contains("no part of it has weights of the variant pf16") && message.contains("it has fp16"),
        "{message}"
    );
}

#[test]
fn sample_reads_the_variant_that_is_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let model = checkpoint(folder.path());
    // A broken file, so that it shows which one is read.
    std::fs::write(model.join("transformer").join(FP16), b"broken").unwrap();
    assert!(sample(&model, &[]).status.success());
    let chosen = sample(&model, &["--variant", "fp16"]);
    assert_eq!(chosen.status.code(), Some(4));
    assert!(said(&chosen).contains(FP16), "{}", said(&chosen));
}

#[test]
fn a_run_file_chooses_a_variant() {
    let check = |variant: &str| {
        let text = format!("model: {{path: x/y, variant: {variant}}}\ndatasets: [{{path: clips}}]\n");
        vtrain::config::RunConfig::parse(&text, Path::new("run.yaml"), Path::new("/"), &[])
    };
    assert_eq!(check("fp16").unwrap().model.variant.as_deref(), Some("fp16"));
    let problems = check("a/b").unwrap_err();
    assert!(
        problems.to_string().contains("model.variant: 'a/b' is not a variant"),
        "{problems}"
    );
    // What is encoded with other weights is not found in the cache.
    let folder = tempfile::tempdir().unwrap();
    let model = checkpoint(folder.path());
    let cache = Cache::open(&folder.path().join("cache"));
    let print = |variant| {
        cache
            .fingerprint(&WeightFolder::new(&model, variant), &["vae"])
            .unwrap()
    };
    assert_eq!(print(None), print(None));
    assert_ne!(print(None), print(Some("fp16")));
    std::fs::copy(model.join("vae").join(USUAL), model.join("vae").join(FP16)).unwrap();
    let opened = WeightFolder::new(&model, Some("fp16"));
    let family = models::open(opened, FamilyName::Auto).unwrap();
    assert_eq!(family.spec().directory.variant(), Some("fp16"));
    family.video_encoder(&Load::new(DType::F32, &Device::Cpu)).unwrap();
}

#[test]
fn a_merged_variant_leaves_no_index_of_other_weights() {
    let folder = tempfile::tempdir().unwrap();
    let model = checkpoint(folder.path());
    let transformer = model.join("transformer");
    std::fs::rename(transformer.join(USUAL), transformer.join(FP16)).unwrap();
    write(
        &transformer.join("diffusion_pytorch_model-00001-of-00001.safetensors"),
        &[("x", 1.0)],
    );
    let map = BTreeMap::from([("x", "diffusion_pytorch_model-00001-of-00001.safetensors")]);
    let map = serde_json::json!({ "weight_map": map });
    std::fs::write(
        transformer.join("diffusion_pytorch_model.safetensors.index.json"),
        map.to_string(),
    )
    .unwrap();
    let lora =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx_video/lora/pytorch_lora_weights.safetensors");
    let out = folder.path().join("merged");
    let [model_text, lora, out_text] = [&model, &lora, &out].map(|path| path.to_str().unwrap());
    let args = [
        "lora",
        "merge",
        "--model",
        model_text,
        "--variant",
        "fp16",
        "--lora",
        lora,
        out_text,
    ];
    let output = vtrain(&args);
    assert!(output.status.success(), "{}", said(&output));
    let mut names: Vec<String> = std::fs::read_dir(out.join("transformer"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", FP16]);
    let output = sample(&out, &[]);
    assert!(output.status.success(), "{}", said(&output));
}
