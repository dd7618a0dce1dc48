//! Verdicts of training steps with streamed blocks, beside one with all blocks in memory.

use std::fs;
use std::process::Command;

use super::{root, said};

/// Figures of a step, as `vtrain bench --json` prints them.
fn step(seconds: f64, gib: u64, block_bytes: Option<u64>) -> String {
    let mut measured = serde_json::json!({
        "device": "cpu", "attention": ["cpu"], "activation_policy": "auto", "model_flops_per_second": 1.0,
        "matmul_flops_per_second": 1.0, "step_seconds": [seconds], "step_seconds_median": seconds,
        "peak_memory_bytes": gib << 30,
    });
    if let Some(bytes) = block_bytes {
        measured["block_bytes_peak"] = bytes.into();
    }
    measured.to_string()
}

#[test]
#[ignore = "needs visit: python3, xz and git"]
fn a_streamed_step_fails_beyond_its_bounds_and_where_no_block_was_streamed() {
    let folder = tempfile::tempdir().unwrap();
    let [resident, streamed, told] = ["resident", "streamed", "told"].map(|name| folder.path().join(name));
    fs::write(&resident, step(1.0, 20, None)).unwrap();
    for (step, bounds, holds) in [
        (step(1.1, 7, Some(1)), ["1.15", "8"], true),
        (step(1.2, 7, Some(1)), ["1.15", "8"], false),
        (step(1.1, 9, Some(1)), ["1.15", "8"], false),
        (step(1.2, 9, Some(1)), ["-", "-"], true),
        (step(1.1, 7, None), ["1.15", "8"], false),
        (step(1.1, 7, Some(0)), ["-", "-"], false),
    ] {
        fs::write(&streamed, step).unwrap();
        let mut rows = Command::new("python3");
        rows.arg(root().join("scripts/gpu_check/rows.py"))
            .args(["bounded", "half"])
            .args([&told, &resident])
            .args(bounds)
            .args(["bash", "-c", "cat \"$0\""])
            .arg(&streamed)
            .arg("model.offload=group");
        let output = rows.output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.success(), holds, "{bounds:?}: {said}");
        assert_eq!(said.contains("FAIL half: "), !holds, "{bounds:?}: {said}");
    }
}
