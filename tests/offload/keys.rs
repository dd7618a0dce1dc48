//! `model.offload` and `model.offload_resident` in run files.

use std::path::Path;

use vtrain::config::RunConfig;
use vtrain::distributed::Single;
use vtrain::models::{Config, Offload};
use vtrain::nn::residency::{Residency, ResidentShare};

const RUN: &str = "model: {path: m}\ndatasets: [{path: c}]\n";

fn parse(sets: &[&str]) -> Result<Config, String> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    let parsed = RunConfig::parse(RUN, Path::new("run.yaml"), Path::new("/"), &sets);
    parsed.map(|config| config.model).map_err(|error| error.to_string())
}

#[test]
fn a_run_file_says_what_leaves_memory() {
    let share = |sets: &[&str]| {
        let model = parse(sets).unwrap();
        let of = |residency| match residency {
            Residency::Streamed(share) => Some(share),
            _ => None,
        };
        let [encoder, transformer] = [
            model.load(&candle_core::Device::Cpu).residency,
            model.residency(&Single),
        ];
        (of(encoder), of(transformer))
    };
    let both = |share| (Some(share), Some(share));
    assert_eq!(share(&[]), (None, None));
    assert_eq!(share(&["model.offload=none"]), (None, None));
    assert_eq!(share(&["model.offload=model"]), (None, Some(ResidentShare::Share(1.0))));
    assert_eq!(share(&["model.offload=group"]), both(ResidentShare::Auto));
    for (value, expected) in [
        ("auto", ResidentShare::Auto),
        ("0", ResidentShare::Share(0.0)),
        ("0.5", ResidentShare::Share(0.5)),
    ] {
        let set = format!("model.offload_resident={value}");
        assert_eq!(share(&["model.offload=group", &set]), both(expected), "{value}");
    }
    // What was read is written so that it reads the same.
    let text =
        serde_saphyr::to_string(&parse(&["model.offload=group", "model.offload_resident=0.25"]).unwrap()).unwrap();
    let again: Config = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(
        (again.offload, again.offload_resident),
        (Offload::Group, ResidentShare::Share(0.25))
    );
}

#[test]
fn what_cannot_go_together_is_refused_by_its_key() {
    let refused = |sets: &[&str], expected: &str| {
        let message = parse(sets).unwrap_err();
        assert!(message.contains(expected), "{sets:?}: {message}");
    };
    refused(
        &["model.offload=blocks"],
        "model.offload: 'blocks' is not one of none, model, group",
    );
    let share = "model.offload_resident: must be auto, or a share between 0 and 1, got ";
    for value in ["1.5", "-0.1", "most", "[]"] {
        refused(
            &["model.offload=group", &format!("model.offload_resident={value}")],
            share,
        );
    }
    refused(
        &["model.offload_resident=0.5"],
        "model.offload_resident: needs offload: group",
    );
    parse(&["model.offload=group", "model.sharding=full"]).unwrap();
    for keeps_all in ["train.gradient_checkpointing=false", "train.activation_policy=all"] {
        let expected = "model.offload: group needs train.gradient_checkpointing";
        refused(&["model.offload=group", keeps_all], expected);
        parse(&["model.offload=model", keeps_all]).unwrap();
    }
}
