//! `vtrain bench` measures without weights, clips or encoders.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use vtrain::ops::instructions::Instructions;

/// A folder with nothing but a transformer's config.json, and a run file beside it.
fn bare() -> tempfile::TempDir {
    bare_of("cogvideox/cogvideox-5b")
}

/// The same, of a checkpoint among the fixtures.
fn bare_of(checkpoint: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let transformer = folder.path().join("model/transformer");
    fs::create_dir_all(&transformer).unwrap();
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let source = format!("{fixtures}/{checkpoint}/transformer/config.json");
    fs::copy(source, transformer.join("config.json")).unwrap();
    let run = "output_dir: out\ndevice: cpu\nmodel: {path: model, dtype: f32}\nlora: {rank: 4, alpha: 4}\n\
               datasets: [{path: nowhere, buckets: [[9, 32, 48]]}]\n";
    fs::write(folder.path().join("run.yaml"), run).unwrap();
    folder
}

fn bench(folder: &tempfile::TempDir, more: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain"))
        .args(["bench", "--steps", "2", "--config"])
        .arg(folder.path().join("run.yaml"))
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn a_config_is_enough_to_measure_a_step() {
    let folder = bare();
    for (more, batch_size, bucket) in [
        (&[][..], 1, [9, 32, 48]),
        (&["--set", "train.gradient_checkpointing=false"], 1, [9, 32, 48]),
        (
            &["--set", "train.batch_size=2", "--bucket", "17,64,96"],
            2,
            [17, 64, 96],
        ),
    ] {
        let output = bench(&folder, &[&["--random-weights", "--json"], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["step_seconds"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&told["batch_size"], &told["bucket"]),
            (&json!(batch_size), &json!(bucket))
        );
        for key in [
            "step_seconds_median",
            "forward_seconds_median",
            "model_flops_per_second",
            "matmul_flops_per_second",
        ] {
            assert!(told[key].as_f64().unwrap() > 0.0, "{key}: {told}");
        }
        assert_eq!(told["trainable"], 2048);
        assert!(told["params"].as_u64().unwrap() > 10_000, "{told}");
        assert!(told["peak_memory_bytes"].as_u64().unwrap() > 1 << 20, "{told}");
    }
}

#[test]
fn transformers_of_all_families_are_measured() {
    for (checkpoint, tokens, adapters) in [
        ("ltx_video/ltx-0.9.0", 3 * 2 * 3, 24),
        ("wan/wan-2.1-t2v", 5 * 4 * 6, 16),
        ("wan/wan-2.1-i2v", 5 * 4 * 6, 16),
    ] {
        let folder = bare_of(checkpoint);
        let output = bench(&folder, &["--random-weights", "--json", "--bucket", "17,64,96"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{checkpoint}: {error}");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        // 28 features, rank 4: two matrices an adapter.
        assert_eq!(
            (told["tokens"].as_u64(), told["trainable"].as_u64()),
            (Some(tokens), Some(adapters * 2 * 28 * 4)),
            "{checkpoint}"
        );
        let output = bench(&folder, &["--random-weights", "--bucket", "17,60,96"]);
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("multiple"),
            "{checkpoint}"
        );
    }
}

#[test]
fn weights_in_few_bits_are_measured() {
    let folder = bare();
    let told = |form: &str| {
        let form = format!("model.quantization={form}");
        let output = bench(&folder, &["--random-weights", "--json", "--set", &form]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let (dense, stored) = (told("none"), told("int8"));
    assert_eq!(
        (&dense["quantization"], &stored["quantization"]),
        (&json!("none"), &json!("int8"))
    );
    let bytes = |told: &Value| told["weight_bytes"].as_f64().unwrap();
    assert_eq!(bytes(&dense), 4.0 * dense["params"].as_f64().unwrap());
    assert_eq!(dense["params"], stored["params"]);
    assert!(bytes(&stored) < 0.5 * bytes(&dense), "{stored}");
    assert!(stored["loading_peak_bytes"].as_u64().unwrap() <= stored["peak_memory_bytes"].as_u64().unwrap());
}

#[test]
fn a_sampling_step_has_neither_adapters_nor_a_way_back() {
    let output = bench(&bare(), &["--random-weights", "--json", "--forward"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (told["trainable"].as_u64(), told["backward_seconds_median"].as_f64()),
        (Some(0), Some(0.0))
    );
}

#[test]
fn without_weights_and_without_making_them_up_it_says_what_is_missing() {
    let folder = bare();
    let output = bench(&folder, &[]);
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no safetensors file"));
    let output = bench(&folder, &["--random-weights", "--bucket", "17,60,96"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("multiples of 16"));
    assert_eq!(bench(&folder, &["--bucket", "17x60"]).status.code(), Some(2));
}

#[test]
fn a_profile_tells_what_each_op_and_product_of_a_step_takes() {
    let folder = bare();
    let output = bench(&folder, &["--random-weights", "--json", "--profile"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let profile = &told["profile"];
    let lines: Vec<(&str, &str, f64, f64)> = profile["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap();
            let number = |key: &str| line[key].as_f64().unwrap();
            (text("level"), text("name"), number("calls"), number("seconds"))
        })
        .collect();
    let calls = |level: &str, name: &str| {
        let found = lines.iter().find(|line| (line.0, line.1) == (level, name));
        found.unwrap_or_else(|| panic!("no {level} {name}: {lines:?}")).2
    };
    // The transformer has two blocks, and the last one is not run a second time.
    assert_eq!(calls("op", "attention backward"), 2.0);
    assert_eq!(calls("op", "lora-linear backward"), 8.0);
    assert!(calls("op", "lora-linear") >= 8.0 && calls("op", "norm") > 2.0 && calls("op", "norm backward") > 2.0);
    for once in ["optimiser", "norm of all gradients", "loss"] {
        assert_eq!(calls("op", once), 1.0, "{once}");
    }
    assert!(
        lines
            .iter()
            .any(|line| line.0 == "kernel" && line.1.starts_with("product ")),
        "{lines:?}"
    );
    // Ops do not hold each other: with the rest they make up the step.
    let step = profile["step_seconds"].as_f64().unwrap();
    let ops: f64 = lines.iter().filter(|line| line.0 == "op").map(|line| line.3).sum();
    let rest = profile["rest_seconds"].as_f64().unwrap();
    assert!(
        ops > 0.0 && ops <= step && (ops + rest - step).abs() < 1e-9 * step,
        "{ops} + {rest} of {step}"
    );
    // What takes longest comes first.
    for level in ["op", "kernel"] {
        let of_level: Vec<f64> = lines.iter().filter(|line| line.0 == level).map(|line| line.3).collect();
        assert!(of_level.is_sorted_by(|a, b| a >= b));
    }
    let table = bench(&folder, &["--random-weights", "--profile"]);
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(
        table.contains(" x attention backward\n") && table.contains("outside of ops\n"),
        "{table}"
    );
}

#[test]
fn a_measurement_tells_by_which_kernels_attention_ran_and_what_was_kept() {
    let folder = bare();
    for (more, keep) in [
        (&[][..], "auto"),
        (&["--set", "train.activation_policy=inputs"], "inputs"),
        (&["--set", "train.activation_policy=offloaded"], "offloaded"),
        (&["--set", "train.gradient_checkpointing=false"], "all"),
    ] {
        let output = bench(&folder, &[&["--random-weights", "--json"], more].concat());
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["attention"], serde_json::json!(["cpu"]));
        let instructions = serde_json::to_value(Instructions::detect()).unwrap();
        assert_eq!(told["instructions"], instructions);
        assert_eq!(
            (told["activation_policy"].as_str(), told["device"].as_str()),
            (Some(keep), Some("cpu"))
        );
        assert!(told.get("profile").is_none(), "{told}");
    }
    let table = bench(&folder, &["--random-weights"]);
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(table.contains("attention  cpu\n"), "{table}");
    let by = format!("kernels    {}\n", Instructions::detect());
    assert!(table.contains(&by), "{table}");
}
