//! Gradients are clipped to `train.max_grad_norm`, or left as they are where it is null.

use std::collections::HashMap;

use candle_core::Tensor;

use super::{Run, relative, stderr};

/// With an epsilon far above all gradients, AdamW's steps are as long as they are.
fn trained(max_grad_norm: &str) -> (HashMap<String, Tensor>, Vec<f64>) {
    let run = Run::case("plain", 2);
    let norm = format!("train.max_grad_norm={max_grad_norm}");
    run.train(&[
        "--set",
        &norm,
        "--set",
        "train.steps=3",
        "--set",
        "optimizer.epsilon=1",
        "--set",
        "optimizer.lr=1.0",
    ]);
    (run.adapter(), run.column("grad_norm"))
}

#[test]
fn without_a_norm_gradients_are_not_clipped() {
    let (unclipped, norms) = trained("null");
    let (never_reached, _) = trained("1e9");
    let (clipped, clipped_norms) = trained("1e-6");
    assert!(norms[0] > 1e-4, "{norms:?}");
    assert_eq!(norms[0], clipped_norms[0], "what is told is the norm before clipping");
    let mut apart: f64 = 0.0;
    for (name, tensor) in unclipped.iter().filter(|(name, _)| name.contains("lora_B")) {
        assert_eq!(relative(tensor, &never_reached[name]), 0.0, "{name}");
        apart = apart.max(relative(&clipped[name], tensor));
    }
    assert!(apart > 1e-4, "{apart}");
}

#[test]
fn a_norm_that_nothing_could_have_is_refused() {
    for wrong in ["0", "-1"] {
        let run = Run::case("plain", 2);
        let output = run
            .command(&["--set", &format!("train.max_grad_norm={wrong}")])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("null for no clipping"), "{}", stderr(&output));
    }
}
