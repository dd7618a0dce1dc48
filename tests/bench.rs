//! `vtrain bench` measures without weights, clips or encoders.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

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
