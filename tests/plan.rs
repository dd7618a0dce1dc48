//! Plans of memory against what the same computation allocates, and what a plan says.
//!
//! What is measured runs in a process of its own, because it counts the allocations of all threads.

mod auto;
mod findings;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use serde_json::json;
use vtrain::config::RunConfig;
use vtrain::data::Bucket;
use vtrain::diffusion::objective;
use vtrain::distributed::{AllGather, Pending, RankInfo};
use vtrain::lora::trainable::Trainable;
use vtrain::models::footprint::Footprint;
use vtrain::models::registry;
use vtrain::models::synthetic::SyntheticRequest;
use vtrain::models::text_embeds::TextShape;
use vtrain::nn::residency::Residency;
use vtrain::nn::storage::quantize::Quantization;
use vtrain::nn::{Load, WeightFolder, Weights};
use vtrain::ops::tape::no_grad;
use vtrain::optim::adamw::AdamW;
use vtrain::optim::clip;
use vtrain::plan::denoising::{Clips, Pass, Transformer};
use vtrain::plan::timeline::Place;
use vtrain::plan::training::training;
use vtrain::process::allocations;
use vtrain::rng::Rng;
use vtrain::train::segments::forward_backward;

/// Share by which a plan may differ from what is measured.
const OFF: f64 = 0.1;

/// Variable that holds the number of the case that a process measures.
const CHILD: &str = "VTRAIN_TEST_PLAN_CASE";

/// Text tokens, fewer than any checkpoint has.
const TEXT: usize = 16;

/// A model, its settings, and a bucket.
struct Case {
    family: &'static str,
    sets: Vec<String>,
    bucket: Bucket,
    count: usize,
    forward: bool,
    /// Processes that share the blocks.
    ranks: usize,
}

/// Six families, four forms, four policies, batches and buckets, training and sampling, and blocks that several ranks share: 85 cases.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for family in ["cogvideox", "ltx_video", "wan", "hunyuan_video", "mochi", "allegro"] {
        let side = if family == "ltx_video" { 32 } else { 16 };
        let bucket = |frames: usize, rows: usize, columns: usize| {
            // As many latent frames as where they are made of four.
            let frames = if family == "mochi" {
                (frames - 1) / 4 * 6 + 1
            } else {
                frames
            };
            Bucket::from([frames, rows * side, 2 * columns * side])
        };
        let case = |sets: &[&str], bucket, ranks| Case {
            family,
            sets: sets.iter().map(ToString::to_string).collect(),
            bucket,
            count: 1,
            forward: false,
            ranks,
        };
        if ["cogvideox", "wan", "hunyuan_video"].contains(&family) {
            let full = ["model.sharding=full", "train.activation_policy=inputs"];
            all.push(case(&full, bucket(9, 4, 6), 2));
            all.push(case(&[&full[..], &["model.dtype=bf16"]].concat(), bucket(9, 4, 6), 4));
            all.push(case(
                &[&full[..], &["model.quantization=nf4"]].concat(),
                bucket(9, 4, 6),
                4,
            ));
        }
        let mut place = 0;
        let mut push = |sets: &[&str], bucket, count, forward| {
            place += 1;
            // Of Mochi and Allegro, whose blocks are like HunyuanVideo's and LTX-Video's, every second one.
            if ["mochi", "allegro"].contains(&family) && place % 2 == 0 {
                return;
            }
            all.push(Case {
                count,
                forward,
                ..case(sets, bucket, 1)
            });
        };
        let inputs = "train.activation_policy=inputs";
        for policy in [
            inputs,
            "train.activation_policy=inputs+attention",
            "train.activation_policy=all",
        ] {
            push(&[policy], bucket(9, 4, 6), 1, false);
            push(&[policy, "model.dtype=bf16"], bucket(9, 6, 6), 1, false);
        }
        push(&["train.activation_policy=offloaded"], bucket(9, 4, 6), 1, false);
        push(&[inputs, "model.quantization=nf4"], bucket(17, 6, 6), 1, false);
        push(
            &[inputs, "model.quantization=int8", "model.dtype=bf16"],
            bucket(17, 6, 6),
            1,
            false,
        );
        push(
            &[inputs, "optimizer.name=adamw8bit", "lora.rank=32"],
            bucket(1, 6, 6),
            2,
            false,
        );
        push(
            &[inputs, "lora.dropout=0.1", "lora.target_modules=all-linear"],
            bucket(17, 4, 4),
            1,
            false,
        );
        push(&[], bucket(9, 6, 6), 1, true);
        push(&["model.dtype=bf16"], bucket(9, 6, 6), 2, true);
        push(&["model.quantization=q8_0"], bucket(25, 6, 6), 1, true);
        push(
            &["model.quantization=nf4", "model.dtype=bf16"],
            bucket(33, 8, 6),
            1,
            true,
        );
    }
    all
}

/// A folder with the config of a transformer of four heads of 16 features and some blocks, and a run file.
fn folder(case: &Case) -> (tempfile::TempDir, RunConfig) {
    let (source, changes) = match case.family {
        "cogvideox" => (
            "cogvideox/cogvideox-5b",
            json!({"text_embed_dim": 32, "time_embed_dim": 32}),
        ),
        "ltx_video" => (
            "ltx_video/ltx-0.9.1",
            json!({"cross_attention_dim": 64, "caption_channels": 32}),
        ),
        "hunyuan_video" => (
            "hunyuan_video/checkpoints/t2v",
            json!({
                "in_channels": 16, "out_channels": 16, "text_embed_dim": 32, "pooled_projection_dim": 768,
                "rope_axes_dim": [4, 6, 6], "num_single_layers": 3,
            }),
        ),
        "mochi" => (
            "mochi/mochi-1",
            json!({"in_channels": 12, "text_embed_dim": 32, "time_embed_dim": 32, "pooled_projection_dim": 32}),
        ),
        // Heads that divide into pairs on three axes.
        "allegro" => (
            "allegro/allegro-t2v",
            json!({"attention_head_dim": 18, "cross_attention_dim": 72, "caption_channels": 32}),
        ),
        _ => (
            "wan/wan-2.1-t2v",
            json!({"ffn_dim": 256, "text_dim": 32, "freq_dim": 32, "rope_max_seq_len": 64}),
        ),
    };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let path = fixtures.join(source).join("transformer/config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    // Enough for their inputs to count, where these are not in memory.
    let blocks = match case.sets.iter().any(|set| set.ends_with("=offloaded")) {
        true => 20,
        false if case.ranks > 1 => 10,
        false => 5,
    };
    // Enough for their weights to count, where these are shared.
    let heads = if case.ranks > 1 { 8 } else { 4 };
    let sizes = json!({"num_attention_heads": heads, "attention_head_dim": 16, "num_layers": blocks});
    for (key, value) in [sizes, changes].iter().flat_map(|all| all.as_object().unwrap()) {
        config[key] = value.clone();
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("model/transformer")).unwrap();
    std::fs::write(folder.path().join("model/transformer/config.json"), config.to_string()).unwrap();
    let text = "model: {path: ./model, dtype: f32}\ndatasets: [{path: .}]\nlora: {rank: 8, alpha: 8}\n";
    let run = RunConfig::parse(text, Path::new("run.yaml"), folder.path(), &case.sets).unwrap();
    (folder, run)
}

fn footprint(case: &Case) -> Footprint {
    let spec = registry::FAMILIES
        .iter()
        .find(|spec| format!("{:?}", spec.name).to_lowercase() == case.family.replace('_', ""));
    let spec = spec.unwrap();
    Footprint {
        text: TextShape {
            tokens: TEXT,
            width: 32,
            ..spec.footprint.text
        },
        ..spec.footprint
    }
}

fn planned(case: &Case) -> u64 {
    let (folder, run) = folder(case);
    let weights = WeightFolder::new(&folder.path().join("model"), None);
    let transformer = Transformer {
        folder: &weights,
        has_files: false,
        family: registry::of_transformer(&weights.part("transformer")).unwrap(),
        footprint: footprint(case),
        dtype: run.model.dtype.into(),
        quantization: run.model.quantization.form(),
        lora: (!case.forward).then_some(&run.lora),
        place: Place::Host {
            threads: rayon::current_num_threads(),
        },
        ranks: case.ranks,
        findings: Default::default(),
    };
    let clips = Clips {
        bucket: case.bucket,
        count: case.count,
    };
    if case.forward {
        let pass = transformer.memory(clips, Pass::Forward).unwrap();
        return pass.held.weight_bytes + pass.input_bytes + pass.level.peak as u64;
    }
    training(&run, &transformer, clips, None).unwrap().memory.peak_bytes
}

/// The first of so many ranks, which gathers its own part in place of the others'.
struct FirstRank(usize);

struct Gathered(Tensor);

impl AllGather for FirstRank {
    fn place(&self) -> RankInfo {
        RankInfo {
            world_size: self.0,
            ..RankInfo::ALONE
        }
    }

    fn begin(&self, part: &Tensor) -> anyhow::Result<Box<dyn Pending>> {
        Ok(Box::new(Gathered(Tensor::cat(&vec![part; self.0], 0)?)))
    }
}

impl Pending for Gathered {
    fn end(self: Box<Self>) -> anyhow::Result<Tensor> {
        Ok(self.0)
    }
}

/// Trains a step, or predicts, as a run does, and returns the peak of all that the process allocates for it.
fn measured(case: &Case) -> u64 {
    let (folder, run) = folder(case);
    let weights = WeightFolder::new(&folder.path().join("model"), None);
    let family = registry::of_transformer(&weights.part("transformer")).unwrap();
    allocations::count();
    let trainable = Arc::new(Trainable::new(&run.lora, &registry::names(), Rng::new(0), &Device::Cpu).unwrap());
    let dtype: DType = run.model.dtype.into();
    let mut load = Load::new(dtype, &Device::Cpu);
    if !case.forward {
        load = load.with_adapters(trainable.clone());
    }
    if case.ranks > 1 {
        load = load.with_residency(Residency::Sharded(Arc::new(FirstRank(case.ranks))));
    }
    let form: Option<Quantization> = run.model.quantization.form();
    let weights_of_model = Weights::random(&load).quantized(form, &family.dense_modules.of(form));
    let spec = (family.synthetic)(&weights.part("transformer")).unwrap();
    let request = SyntheticRequest {
        grid: spec.grid(case.bucket, &footprint(case)).unwrap(),
        batch: case.count,
        frame_rate: family.frame_rate,
        text_tokens: Some(TEXT),
    };
    let batch = spec.transformer(weights_of_model).unwrap().batch(&request).unwrap();
    if case.forward {
        allocations::take_peak();
        no_grad(|| batch.denoiser.forward(&batch.input)).unwrap();
        return allocations::take_peak().unwrap();
    }
    let pairs = trainable.finish().unwrap();
    let vars: Vec<Var> = pairs.into_iter().flat_map(|pair| [pair.a, pair.b]).collect();
    let mut optimizer = AdamW::new(vars.clone(), &run.optimizer).unwrap();
    trainable.dropout().set(Some(1));
    allocations::take_peak();
    let loss = |prediction: &Tensor| objective::loss(prediction, &batch.target, None);
    let saved = run.train.saved_activations(&Device::Cpu, &run.output_dir);
    let saved = match load.residency.lends_in_turn() {
        true => saved.without_blocks(),
        false => saved,
    };
    let passed = forward_backward(&*batch.denoiser, &batch.input, &loss, &vars, saved).unwrap();
    let gradients: Vec<Tensor> = passed.gradients.into_iter().map(Option::unwrap).collect();
    clip::global_norm(&gradients).unwrap();
    optimizer.step(&gradients, 1.0, 1e-3).unwrap();
    allocations::take_peak().unwrap()
}

#[test]
fn a_plan_is_within_a_tenth_of_the_peak_of_training_and_sampling() {
    match std::env::var_os(CHILD) {
        Some(_) => print_peaks(&cases()),
        None => compare_with_plans(&cases()),
    }
}

/// Measures, in a process without other tests.
fn print_peaks(cases: &[Case]) {
    measured(&cases[0]); // makes every thread allocate what its products keep
    for case in cases {
        println!("\nmeasured {}", measured(case));
    }
}

fn compare_with_plans(cases: &[Case]) {
    let name = "plan::a_plan_is_within_a_tenth_of_the_peak_of_training_and_sampling";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "all")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    let peaks = output
        .lines()
        .filter_map(|line| line.strip_prefix("measured ")?.parse().ok());
    let peaks: Vec<f64> = peaks.collect();
    assert_eq!(
        peaks.len(),
        cases.len(),
        "{output}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    let mut wrong = Vec::new();
    for (case, peak) in cases.iter().zip(peaks) {
        let plan = planned(case) as f64;
        let Case {
            family,
            sets,
            bucket,
            count,
            forward,
            ranks,
        } = case;
        let line = format!(
            "{family} {sets:?} {count} x {bucket} forward {forward} ranks {ranks}: {plan} planned, {peak} measured, {:.3}",
            plan / peak
        );
        println!("{line}");
        if (plan / peak - 1.0).abs() > OFF {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A run file of a checkpoint among the fixtures, with one clip of 17 frames of 64 x 96.
pub struct Run(pub tempfile::TempDir);

impl Run {
    pub fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx_video/ltx-0.9.5");
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::fs::write(folder.path().join("data/a.y4m"), crate::data::y4m(96, 64, 17, 8)).unwrap();
        std::fs::write(folder.path().join("data/a.txt"), "a").unwrap();
        let text = format!(
            "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\nlora: {{rank: 4, alpha: 4}}\n\
             datasets: [{{path: data, buckets: [[17, 64, 96]]}}]\n{more}",
            model.display()
        );
        std::fs::write(folder.path().join("run.yaml"), text).unwrap();
        Self(folder)
    }

    pub fn vtrain(&self, verb: &str, options: &[&str]) -> (Option<i32>, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_vtrain"))
            .arg(verb)
            .arg("--config")
            .arg(self.0.path().join("run.yaml"))
            .args(options)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    pub fn plan(&self, options: &[&str]) -> serde_json::Value {
        let (code, out, error) = self.vtrain("plan", &[&["--json"], options].concat());
        assert_eq!(code, Some(0), "{error}");
        serde_json::from_str(&out).unwrap()
    }
}

const PROMPT: &str = "validation: {prompts: [{prompt: a, num_frames: 9, height: 64, width: 64, steps: 2}]}";

#[test]
fn a_plan_names_every_stage_and_what_training_is_made_of() {
    let run = Run::new(PROMPT);
    let plan = run.plan(&["--no-calibration"]);
    let bytes = |path: &str| plan.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or(0);
    for stage in ["training", "text", "encode", "validation"] {
        let peak = bytes(&format!("/{stage}/peak_bytes"));
        assert!(peak > 0, "{stage}: {plan}");
        assert_eq!(
            bytes(&format!("/{stage}/host_bytes")),
            peak,
            "{stage}: the CPU has one memory"
        );
    }
    let parts = ["weight_bytes", "adapter_bytes", "optimizer_bytes", "activation_bytes"];
    let sum: u64 = parts.iter().map(|part| bytes(&format!("/training/{part}"))).sum();
    assert_eq!(sum, bytes("/training/peak_bytes"));
    assert!(bytes("/disk_bytes") > 0 && bytes("/free_bytes") > 0, "{plan}");
    assert_eq!((&plan["fits"], &plan["device"]), (&json!(true), &json!("cpu")));
    assert_eq!(plan.get("time"), None);
    let (code, table, _) = run.vtrain("plan", &["--no-calibration", "--set", "validation.prompts=[]"]);
    assert_eq!(code, Some(0));
    let stages = ["text encoding", "clip encoding", "training", "disk", "it fits into"];
    assert!(
        stages.iter().all(|stage| table.contains(stage)) && !table.contains("validation"),
        "{table}"
    );
}

#[test]
fn the_longest_bucket_counts_and_a_calibration_gives_times() {
    let run = Run::new("train: {steps: 10}");
    let plan = |buckets: &str, more: &[&str]| {
        let set = format!("datasets.0.buckets={buckets}");
        run.plan(&[&["--configs-only", "--set", &set], more].concat())
    };
    let none = &["--no-calibration"][..];
    let longest = plan("[[17,64,96]]", none);
    assert_eq!(
        plan("[[9,64,96],[17,64,96],[1,64,64]]", none)["training"],
        longest["training"]
    );
    assert_ne!(plan("[[9,64,96]]", none)["training"], longest["training"]);
    let timed = plan("[[17,64,96]]", &[]);
    let [step, all] = ["step_seconds", "total_seconds"].map(|key| timed["time"][key].as_f64().unwrap());
    assert!(step > 0.0 && (all / step - 10.0).abs() < 1e-6, "{timed}");
}

/// Layers work on blocks of 2,048 rows, which a recorded pass must not take for another computation.
#[test]
fn memory_of_activations_grows_with_the_frames_of_very_long_clips() {
    let run = Run::new("train: {activation_policy: inputs}");
    let bytes = |frames: usize| {
        let bucket = format!("datasets.0.buckets=[[{frames},64,96]]");
        let plan = run.plan(&["--configs-only", "--no-calibration", "--set", &bucket]);
        plan["training"]["activation_bytes"].as_f64().unwrap()
    };
    let [short, long] = [bytes(4001), bytes(8001)];
    assert!((1.9..2.0).contains(&(long / short)), "{short} {long}");
}

#[test]
fn suggestions_fit_when_they_are_applied() {
    let run = Run::new("train: {batch_size: 2, activation_policy: all}\nprecompute: {dir: cache}");
    let options = ["--configs-only", "--no-calibration"];
    let gpu = [&options[..], &["--set", "device=auto"]].concat();
    let now = run.plan(&[&gpu[..], &["--device-memory", "80GB"]].concat())["training"]["peak_bytes"]
        .as_u64()
        .unwrap();
    // By single settings, and by several together.
    for (bytes, together) in [(now / 2, 1), (now / 3, 2)] {
        let memory = format!("{}B", (640 << 20) + bytes); // 640 MiB are the driver's
        let sized = [&gpu[..], &["--device-memory", &memory]].concat();
        let plan = run.plan(&sized);
        assert_eq!(plan["fits"], json!(false), "{plan}");
        let suggestions = plan["suggestions"].as_array().unwrap();
        assert!(!suggestions.is_empty(), "{plan}");
        for suggestion in suggestions.iter().take(2) {
            let sets = suggestion["set"].as_array().unwrap().iter();
            let sets: Vec<&str> = sets.flat_map(|set| ["--set", set.as_str().unwrap()]).collect();
            assert!(sets.len() >= 2 * together, "{plan}");
            let applied = run.plan(&[&sized[..], &sets].concat());
            assert_eq!(applied["fits"], json!(true), "{suggestion}: {applied}");
            assert_eq!(
                applied["training"]["peak_bytes"], suggestion["peak_bytes"],
                "{suggestion}"
            );
            assert!(!suggestion["cost"].as_str().unwrap().is_empty());
        }
    }
    let (code, _, error) = run.vtrain("plan", &["--device-memory", "24 apples"]);
    assert!(code == Some(2) && error.contains("24 apples"), "{error}");
}

#[test]
fn everything_that_is_missing_is_said_at_once() {
    let run = Run::new("");
    let (code, _, error) = run.vtrain(
        "plan",
        &["--set", "datasets.0.path=gone", "--set", "model.path=./nowhere"],
    );
    assert_eq!(code, Some(3), "{error}");
    assert!(error.contains("gone") && error.contains("nowhere"), "{error}");
}

#[test]
fn a_part_that_is_missing_is_said_with_clips_that_are() {
    let run = Run::new(PROMPT);
    let model = tempfile::tempdir().unwrap();
    crate::fuzz::copy(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx_video/ltx-0.9.5"),
        model.path(),
    );
    for part in ["text_encoder", "vae", "transformer"] {
        for entry in std::fs::read_dir(model.path().join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains(".safetensors") {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    let set = format!("model.path={}", model.path().display());
    for (clips, code) in [("data", 4), ("gone", 3)] {
        let path = format!("datasets.0.path={clips}");
        let (found, _, error) = run.vtrain("plan", &["--set", &path, "--set", &set]);
        assert_eq!(found, Some(code), "{error}");
        assert_eq!(error.contains("gone"), clips == "gone", "{error}");
        for part in ["text_encoder", "vae", "transformer"] {
            assert!(error.contains(&format!("{part}: ")), "{part}: {error}");
        }
    }
}

/// Clips of Mochi have 6k + 1 frames, those of Allegro 4k.
#[test]
fn suggested_clips_have_frames_that_their_family_takes() {
    for (family, frames, expected) in [("mochi/mochi-1", 49, "[[25,"), ("allegro/allegro-t2v", 48, "[[8,")] {
        let run = Run::new("");
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let model = format!("model.path={}", fixtures.join(family).display());
        let bucket = format!("datasets.0.buckets=[[{frames},512,512]]");
        let sets = ["--configs-only", "--no-calibration", "--set", &model, "--set", &bucket];
        let plan = run.plan(&[&sets[..], &["--device-memory", "685MB"]].concat());
        let said = plan["suggestions"].to_string();
        assert!(said.contains(expected), "{family}: {said}");
    }
}

/// The autoencoder takes the most, because frames are larger than four of its tiles.
#[test]
fn tiles_are_suggested_where_clips_cannot_be_encoded_whole() {
    let run = Run::new("precompute: {vae_tiling: false}");
    let plan = |sets: &[&str], memory: &str| {
        let bucket = ["datasets.0.buckets=[[17,512,2560]]", "device=auto"];
        let sets = [&bucket[..], sets].concat();
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        run.plan(&[&["--no-calibration", "--device-memory", memory], &sets[..]].concat())
    };
    let tiles = "precompute.vae_tiling=true";
    let peak = |plan: &serde_json::Value| plan["encode"]["peak_bytes"].as_u64().unwrap();
    let [whole, tiled] = [plan(&[], "80GB"), plan(&[tiles], "80GB")];
    assert!(
        peak(&tiled) < peak(&whole) && tiled["training"] == whole["training"],
        "{tiled} {whole}"
    );
    let memory = format!("{}B", (640 << 20) + (peak(&whole) + peak(&tiled)) / 2); // 640 MiB are the driver's
    let suggestions = plan(&[], &memory)["suggestions"].clone();
    let found = suggestions
        .as_array()
        .unwrap()
        .iter()
        .find(|found| found["set"] == json!([tiles]));
    assert_eq!(found.unwrap()["peak_bytes"], json!(peak(&tiled)), "{suggestions}");
    assert_eq!(plan(&[tiles], &memory)["fits"], json!(true));
    assert_eq!(
        peak(&plan(&["precompute.vae_tiling=auto"], &memory)),
        peak(&tiled),
        "auto cuts then"
    );
}

#[test]
fn a_run_that_cannot_fit_is_refused_before_anything_is_loaded_unless_the_run_file_wants_it() {
    let run = Run::new("train: {steps: 1, activation_policy: all}");
    let large = [
        "--dry-run",
        "--set",
        "datasets.0.buckets=[[17,16384,16384]]",
        "--set",
        "train.batch_size=64",
    ];
    let (code, _, error) = run.vtrain("train", &large);
    assert_eq!(code, Some(5), "{error}");
    let parts = [
        "training is planned to take",
        "activations",
        "[17, 16384, 16384]",
        "are free",
        "it would fit with",
    ];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    let warned = [&large[..], &["--set", "train.on_too_little_memory=warn"]].concat();
    let (code, _, error) = run.vtrain("train", &warned);
    assert!(
        code == Some(0) && error.contains("training is planned to take"),
        "{error}"
    );
    let (code, _, error) = run.vtrain("train", &["--dry-run"]);
    assert!(
        code == Some(0) && error.contains("planned memory: ") && !error.contains("too little"),
        "{error}"
    );
}

#[test]
fn a_run_shows_the_planned_memory_beside_the_measured() {
    let run = Run::new("train: {steps: 1}\nprecompute: {dir: cache}");
    let (code, _, error) = run.vtrain("train", &[]);
    assert_eq!(code, Some(0), "{error}");
    assert!(
        error.contains(" planned, ") && error.contains(" measured at most"),
        "{error}"
    );
    let about = std::fs::read_to_string(run.0.path().join("out/report/about.json")).unwrap();
    assert!(
        about.contains("memory planned") && about.contains("memory measured"),
        "{about}"
    );
    let page = std::fs::read_to_string(run.0.path().join("out/index.html")).unwrap();
    assert!(page.contains("memory planned") && page.contains("memory measured"));
}
