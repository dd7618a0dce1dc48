//! Run files: all errors are reported at once, with file, line and path.

use std::path::Path;

use vtrain::config::{Device, InvalidConfig, RunConfig};

fn parse(text: &str, sets: &[&str]) -> Result<RunConfig, InvalidConfig> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    RunConfig::parse(
        text,
        Path::new("run.yaml"),
        Path::new("/home/me/project/configs"),
        &sets,
    )
}

fn problems(text: &str, sets: &[&str]) -> Vec<String> {
    match parse(text, sets) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(problems) => problems.to_string().lines().map(String::from).collect(),
    }
}

const GOOD: &str = "model: {path: THUDM/CogVideoX-2b}\ndatasets:\n  - path: clips\n";

#[test]
fn only_the_model_and_a_data_set_are_required() {
    let config = parse(GOOD, &[]).unwrap();
    assert_eq!(config.lora.rank, 128);
    assert_eq!(config.optimizer.lr, 3e-5);
    assert_eq!(config.device, Device::Auto);
    assert_eq!(
        problems("", &[]),
        [
            "run.yaml:1: model.path: is required: a diffusers directory or a Hub repository",
            "run.yaml:1: datasets: is required: a list with at least one {path: FOLDER}",
        ]
    );
}

#[test]
fn everything_wrong_is_told_at_once_in_the_order_of_the_file() {
    let text = "\
model:
  path: THUDM/CogVideoX-2b
  dtyp: bf16
lora: {rank: many, alpha: -1}
datasets:
  - path: clips
    buckets: [[49, 480]]
  - path: more
    repeats: 0
optimiser: {lr: 1e-4}
train:
  steps: -5
  gradient_checkpointing: 1
lr_scheduler: {name: cosin}
";
    let told = problems(text, &[]);
    let starts = [
        "run.yaml:3: model.dtyp: unknown key; did you mean 'dtype'?",
        "run.yaml:4: lora.rank: expected a whole number of at least 0, found the text \"many\"",
        "run.yaml:4: lora.alpha: must be above 0, got -1",
        "run.yaml:7: datasets[0].buckets",
        "run.yaml:9: datasets[1].repeats: ",
        "run.yaml:10: optimiser: unknown key; did you mean 'optimizer'?",
        "run.yaml:12: train.steps: expected a whole number of at least 0, found -5",
        "run.yaml:13: train.gradient_checkpointing: expected true or false, found 1",
        "run.yaml:14: lr_scheduler.name: 'cosin' is not one of",
    ];
    assert_eq!(told.len(), starts.len(), "{told:#?}");
    for (line, start) in told.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}\n is not\n{start}");
    }
    assert!(told[8].ends_with("did you mean 'cosine'?"), "{}", told[8]);
}

#[test]
fn a_syntax_error_names_its_line() {
    let told = problems("model: {path: x}\nlora: {rank: 4\ntrain: 1\n", &[]);
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("run.yaml:"), "{told:?}");
    let told = problems("seed: 1\nseed: 2\n", &[]);
    assert!(told[0].starts_with("run.yaml:2: "), "{told:?}");
}

#[test]
fn set_overrides_with_yaml_values() {
    let sets = [
        "optimizer.lr=1e-4",
        "datasets.0.buckets=[[17, 64, 96]]",
        "lora.target_modules=to_.*",
        "seed=7",
    ];
    let config = parse(GOOD, &sets).unwrap();
    assert_eq!(config.optimizer.lr, 1e-4);
    assert_eq!(config.seed, 7);
    assert_eq!(
        config.lora.target_modules,
        vtrain::lora::TargetModules::Regex("to_.*".into())
    );
    assert_eq!(
        problems(
            GOOD,
            &["optimizer.lrr=1", "train.steps=x", "datasets.3.path=a", "nonsense"]
        ),
        [
            "--set optimizer.lrr=1: optimizer.lrr: unknown key; did you mean 'lr'?",
            "--set train.steps=x: train.steps: expected a whole number of at least 0, found the text \"x\"",
            "--set datasets.3.path=a: there is no item 3, the list has 1",
            "--set nonsense: is not of the form a.b=value",
        ]
    );
}

#[test]
fn the_environment_is_not_looked_at() {
    let config = parse(&format!("{GOOD}output_dir: $HOME/${{USER}}\n"), &[]).unwrap();
    assert_eq!(config.output_dir, Path::new("/home/me/project/configs/$HOME/${USER}"));
}

#[test]
fn relative_paths_start_at_the_files_folder_and_a_hub_name_stays_one() {
    let config = parse(&format!("{GOOD}output_dir: ../runs/./a\n"), &[]).unwrap();
    assert_eq!(config.output_dir, Path::new("/home/me/project/runs/a"));
    assert_eq!(config.datasets[0].path, Path::new("/home/me/project/configs/clips"));
    assert_eq!(config.model.path, "THUDM/CogVideoX-2b");
    let config = parse(GOOD, &["model.path=../models/cogvideox"]).unwrap();
    assert_eq!(config.model.path, "/home/me/project/models/cogvideox");
}

#[test]
fn the_resolved_configuration_is_itself_a_valid_one() {
    let text = format!(
        "{GOOD}validation:\n  prompts:\n    - {{prompt: \"a: 'colon', # hash\", negative_prompt: \"line\\nbreak\"}}\n\
         lora: {{target_modules: \".*attn1.*to_[qkv]\"}}\ndevice: cuda:1\noptimizer: {{epsilon: 1e-15}}\n"
    );
    let config = parse(&text, &[]).unwrap();
    let again = parse(&config.to_yaml().unwrap(), &[]).unwrap();
    assert_eq!(again, config);
}

#[test]
fn hostile_documents_are_refused_quickly() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
    assert!(!problems(bomb, &[]).is_empty());
    assert!(!problems(&"[".repeat(100_000), &[]).is_empty());
    assert!(!problems("- just\n- a list\n", &[]).is_empty());
    assert!(!problems("optimizer: {lr: .nan}\n", &[]).is_empty());
}

/// Refresh with `UPDATE_SCHEMA=1 cargo test schema`.
#[test]
fn the_schema_that_editors_use_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/schema.json");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, RunConfig::schema()).unwrap();
    }
    let shipped = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        shipped == RunConfig::schema(),
        "configs/schema.json is stale: UPDATE_SCHEMA=1 cargo test schema"
    );
}

#[test]
fn every_shipped_configuration_is_valid_and_points_editors_at_the_schema() {
    let mut seen = 0;
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml") {
                RunConfig::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}"));
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(
                    text.starts_with("# yaml-language-server: $schema=../schema.json\n"),
                    "{}",
                    path.display()
                );
                seen += 1;
            }
        }
    }
    assert!(seen >= 2);
}

#[test]
fn a_key_that_was_renamed_is_told_with_its_new_name() {
    let text = "model: {path: m}\ndatasets: [{path: d, on_bad_clip: skip, buckets: [[9, 64, 96]]}]\n\
                train: {keep: all, first_frame: 0.5, max_nonfinite: 2}\n";
    let problems = problems(text, &[]).join("\n");
    for (old, new) in [
        ("datasets[0].on_bad_clip", "on_invalid_clip"),
        ("train.keep", "activation_policy"),
        ("train.first_frame", "first_frame_conditioning_p"),
        ("train.max_nonfinite", "max_consecutive_nonfinite"),
    ] {
        assert!(
            problems.contains(&format!("{old}: was renamed to '{new}'")),
            "{old}: {problems}"
        );
    }
}

#[test]
fn what_checkpointing_keeps_is_not_said_where_it_is_off() {
    let text = "model: {path: m}\ndatasets: [{path: d, buckets: [[9, 64, 96]]}]\n\
                train: {gradient_checkpointing: false, activation_policy: inputs+attention}\n";
    let told = problems(text, &[]);
    assert_eq!(told.len(), 1);
    assert!(
        told[0].contains("train.activation_policy: needs gradient_checkpointing, which is off"),
        "{told:?}"
    );
    for (checkpointing, keep) in [("true", "inputs+attention"), ("false", "all"), ("false", "auto")] {
        let text = text.replace("false", checkpointing).replace("inputs+attention", keep);
        assert!(parse(&text, &[]).is_ok(), "{text}");
    }
}

#[test]
fn opening_the_device_of_a_deterministic_run_makes_the_process_so() {
    use vtrain::ops::determinism;
    assert!(!parse(GOOD, &[]).unwrap().deterministic);
    for (text, deterministic) in [("true", true), ("false", false)] {
        let set = [format!("deterministic={text}"), "device=cpu".into()];
        let config = parse(GOOD, &set.each_ref().map(String::as_str)).unwrap();
        config.open_device().unwrap();
        assert_eq!(determinism::required(), deterministic);
    }
}
