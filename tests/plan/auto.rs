//! Keys that are `auto`: what they stand for, and that a run goes on with it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use vtrain::config::RunConfig;
use vtrain::models::Offload;
use vtrain::plan::Stage;
use vtrain::plan::choice::{Stages, choose};
use vtrain::plan::training::Memory;
use vtrain::train::chosen::ChosenSettings;
use vtrain::train::segments::ActivationPolicy;

use super::Run as PlannedRun;
use crate::training::{Run, model, shapes, stderr};

const AUTO: [&str; 3] = [
    "model.offload=auto",
    "model.quantization=auto",
    "model.text_encoder_quantization=auto",
];

fn parse(sets: &[&str]) -> RunConfig {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    let text = "model: {path: m}\ndatasets: [{path: c}]\n";
    RunConfig::parse(text, Path::new("run.yaml"), Path::new("/"), &sets).unwrap()
}

/// Peaks of a made-up run: 10 for the text encoder; 100 for training, less by every setting.
fn stages(config: &RunConfig) -> anyhow::Result<Stages> {
    let form = |setting: vtrain::nn::storage::quantize::QuantizationSetting| setting.name();
    let text = match (config.model.offload, form(config.model.text_encoder_quantization)) {
        (Offload::Group, "nf4") => 1,
        (Offload::Group, "int8") => 2,
        (Offload::Group, _) => 4,
        (_, "nf4") => 3,
        (_, "int8") => 6,
        _ => 10,
    };
    let activations = match config.train.activation_policy {
        ActivationPolicy::Inputs => 30,
        ActivationPolicy::Offloaded => 20,
        _ => 40,
    };
    let weights = match (config.model.offload, form(config.model.quantization)) {
        (Offload::Group, "nf4") => 3,
        (Offload::Group, "int8") => 6,
        (Offload::Group, _) => 12,
        (_, "nf4") => 15,
        (_, "int8") => 30,
        _ => 60,
    };
    let memory = |peak: u64| Memory {
        peak_bytes: peak << 20,
        host_bytes: 0,
    };
    Ok(vec![
        (Stage::Text, memory(text)),
        (Stage::Training, memory(activations + weights)),
    ])
}

fn chosen(sets: &[&str], recorded: &ChosenSettings, room: u64) -> (Vec<String>, bool) {
    let room = (room << 20) * 11 / 10 + 11; // a tenth stays free
    let choice = choose(&parse(sets), recorded, room, &stages).unwrap();
    (choice.set, choice.fits)
}

#[test]
fn auto_takes_the_first_settings_in_the_order_of_their_costs_with_which_a_run_fits() {
    let inputs = "train.activation_policy=inputs";
    let offloaded = "train.activation_policy=offloaded";
    let (group, int8, nf4) = (
        "model.offload=group",
        "model.quantization=int8",
        "model.quantization=nf4",
    );
    let expected: [(u64, &[&str]); 9] = [
        (100, &[]),
        (99, &[inputs]),
        (89, &[offloaded]),
        (79, &[group]),
        (51, &[inputs, group]),
        (41, &[offloaded, group]),
        (31, &[offloaded, group, int8]),
        (25, &[offloaded, group, nf4]),
        (3, &[offloaded, group, nf4, "model.text_encoder_quantization=int8"]),
    ];
    let none = ChosenSettings::default();
    for (room, sets) in expected {
        let (found, fits) = chosen(&AUTO, &none, room);
        // Without a setting that helps the text encoder alone, none of it is taken for training.
        let (sets, fitting) = match room {
            3 => (
                vec![offloaded, group, nf4, "model.text_encoder_quantization=int8"],
                false,
            ),
            _ => (sets.to_vec(), true),
        };
        assert_eq!(
            (found, fits),
            (sets.iter().map(ToString::to_string).collect(), fitting),
            "{room}"
        );
    }
    // What the run file gives stays, and so does what it says by default: no weights leave memory, or lose bits.
    assert_eq!(chosen(&[], &none, 51), (vec![offloaded.into()], false));
    assert_eq!(chosen(&[AUTO[0], "train.activation_policy=all"], &none, 51).0, [""; 0]);
    assert_eq!(chosen(&[AUTO[1], inputs], &none, 89).0, [int8]);
}

#[test]
fn what_a_checkpoint_has_of_it_stays_whatever_fits() {
    let recorded = ChosenSettings {
        offload: Some(Offload::None),
        activation_policy: Some(ActivationPolicy::Auto),
        ..ChosenSettings::default()
    };
    assert_eq!(chosen(&AUTO[..1], &recorded, 1), (Vec::new(), false));
    // A key that was given then is chosen now.
    assert_eq!(chosen(&AUTO[..2], &recorded, 70).0, ["model.quantization=int8"]);
    let other = RunConfig {
        model: vtrain::models::Config {
            offload: Offload::Group,
            ..parse(&[]).model
        },
        ..parse(&[])
    };
    assert_eq!(parse(&AUTO[..1]).with_chosen(&recorded).model.offload, Offload::None);
    assert_eq!(other.with_chosen(&recorded), other, "what the run file says counts");
}

#[test]
fn a_plan_names_what_auto_stands_for_on_a_device() {
    let run = PlannedRun::new("precompute: {dir: cache}\ntrain: {batch_size: 2}");
    let options = [
        "--configs-only",
        "--no-calibration",
        "--set",
        "device=auto",
        "--device-memory",
    ];
    let sized = |bytes: u64, sets: &[&str]| {
        let memory = format!("{}B", (640 << 20) + bytes); // 640 MiB are the driver's
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        run.plan(&[&options[..], &[&memory], &sets].concat())
    };
    let peak = |plan: &Value| plan["training"]["peak_bytes"].as_u64().unwrap();
    let inputs = ["train.activation_policy=inputs"];
    let smallest = sized(1 << 40, &[&inputs[..], &["model.offload=group"]].concat());
    let auto = sized(peak(&smallest) * 23 / 20, &[&inputs[..], &AUTO[..1]].concat());
    assert_eq!(auto["auto"]["set"], json!(["model.offload=group"]), "{auto}");
    assert!(
        auto["auto"]["cost"].as_str().unwrap().contains("blocks are read again"),
        "{auto}"
    );
    assert_eq!((peak(&auto), &auto["fits"]), (peak(&smallest), &json!(true)));
    assert_eq!(sized(1 << 40, &AUTO).get("auto"), None, "all of it fits");
}

#[test]
fn a_run_says_what_it_chose_and_writes_it_among_its_settings() {
    let run = PlannedRun::new("train: {steps: 1, on_too_little_memory: warn}");
    let sets: Vec<&str> = AUTO.iter().flat_map(|set| ["--set", set]).collect();
    let written = |more: &[&str]| {
        let (code, _, said) = run.vtrain("train", &[&["--dry-run"], &sets[..], more].concat());
        assert_eq!(code, Some(0), "{said}");
        let text = fs::read_to_string(run.0.path().join("out/config.yaml")).unwrap();
        let config = RunConfig::parse(&text, Path::new("config.yaml"), Path::new("/"), &[]).unwrap();
        let model = config.model;
        (
            said,
            [
                format!("{:?}", model.offload),
                model.quantization.name().into(),
                model.text_encoder_quantization.name().into(),
                format!("{:?}", config.train.activation_policy),
            ],
        )
    };
    let (said, settings) = written(&[]);
    assert!(
        said.contains("auto: nothing changes, since the run is planned to fit into the "),
        "{said}"
    );
    assert_eq!(settings, ["None", "none", "none", "Auto"]);
    let (said, settings) = written(&[
        "--set",
        "datasets.0.buckets=[[17,16384,16384]]",
        "--set",
        "model.quantization=none",
        "--set",
        "model.text_encoder_quantization=none",
        "--set",
        "train.batch_size=64",
    ]);
    let line = said.lines().find(|line| line.contains("auto: ")).unwrap();
    for part in [
        "train.activation_policy=offloaded",
        "also with it, the run is planned not to fit into the ",
    ] {
        assert!(line.contains(part), "{said}");
    }
    assert_eq!(said.matches("auto: ").count(), 1, "{said}");
    assert_eq!(settings[3], "Offloaded");
}

/// A run of two steps in which the offload is left to the plan.
fn two_steps() -> Run {
    let run = Run::new("");
    shapes(&run.folder.path().join("data"), 1);
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32, offload: auto, offload_resident: 0}}\n\
         datasets: [{{path: data, buckets: [[1, 32, 48]]}}]\nlora: {{rank: 2, alpha: 2}}\n\
         train: {{steps: 1}}\ncheckpoint: {{every: 1}}\n",
        model().display()
    );
    fs::write(run.file(), text).unwrap();
    run
}

/// The checkpoint is made to say that less memory was free when the run began.
#[test]
fn a_run_goes_on_with_what_it_chose_when_it_began() {
    let run = two_steps();
    let said = stderr(&run.train(&[]));
    assert!(said.contains("auto: nothing changes"), "{said}");
    let path = run.out().join("checkpoints/step-000001/state.json");
    let mut written: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(
        written["state"]["chosen"],
        json!({"offload": "none", "activation_policy": "auto"})
    );
    written["state"]["chosen"] = json!({"offload": "group", "activation_policy": "inputs"});
    let checksum = blake3::hash(&serde_json::to_vec(&written["state"]).unwrap());
    written["checksums"]["state.json"] = checksum.to_hex().to_string().into();
    fs::write(&path, written.to_string()).unwrap();
    let said = stderr(&run.train(&["--set=train.steps=2"]));
    let chosen = "train.activation_policy=inputs, model.offload=group";
    assert!(said.contains(&format!("auto: as the run began: {chosen}")), "{said}");
    assert!(said.contains(": 0 blocks of 0 B in all stay in memory"), "{said}");
    assert!(!said.contains("auto: nothing changes"), "{said}");
    let page = fs::read_to_string(run.out().join("index.html")).unwrap();
    assert!(page.contains("chosen for the memory") && page.contains(chosen));
    let config = fs::read_to_string(run.out().join("config.yaml")).unwrap();
    assert!(
        config.contains("offload: group") && config.contains("activation_policy: inputs"),
        "{config}"
    );
    let state = fs::read_to_string(run.out().join("checkpoints/step-000002/state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(
        state["state"]["chosen"]["offload"], "group",
        "the next one goes on, too"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn sampling_offloads_blocks_where_the_clip_does_not_fit_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let latents = folder.path().join("latents.safetensors");
    let tensor = candle_core::Tensor::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    candle_core::safetensors::save(&[("latents", tensor)].into(), &latents).unwrap();
    // Latents of another size end the command before anything is loaded.
    let said = |frames: &str, size: &str| {
        let output = Command::new("sh")
            .args(["-c", "ulimit -v 2097152; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_vtrain"))
            .args("sample --device cpu --dtype f32 --prompt ball --offload auto --vae-tiling true".split(' '))
            .args(["--num-frames", frames, "--height", size, "--width", size, "--model"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ltx_video/ltx-0.9.5"))
            .args([
                Path::new("--latents"),
                &latents,
                Path::new("--output"),
                &folder.path().join("pictures/"),
            ])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
        stderr(&output)
    };
    let small = said("1", "32");
    assert!(
        small.contains("auto: nothing changes, since the clip is planned to fit into the "),
        "{small}"
    );
    let large = said("33", "16384");
    assert!(
        large.contains("auto: model.offload=group (blocks are read again in every pass"),
        "{large}"
    );
}
