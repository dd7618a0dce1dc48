//! A long run: its memory does not grow, its files are exact, and its logs contain every step once.
//!
//! `VTRAIN_SOAK=2000 cargo test crash::soak -- --nocapture` for the long one; every day it has 120 steps.

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;
use std::time::Duration;

use super::{Run, files_below};
use crate::disk::names;
use crate::watching;

/// A look at a process while it was at a step.
#[derive(Debug, Clone, Copy)]
struct Look {
    step: usize,
    resident: u64,
    files: usize,
}

fn look(child: &Child, step: usize) -> Option<Look> {
    let process = format!("/proc/{}", child.id());
    let status = fs::read_to_string(format!("{process}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(Look {
        step,
        resident: resident.trim().trim_end_matches(" kB").parse().ok()?,
        files: fs::read_dir(format!("{process}/fd")).ok()?.count(),
    })
}

fn median<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
    values[values.len() / 2]
}

#[cfg(target_os = "linux")]
#[test]
fn a_long_run_holds_no_more_at_its_end_than_at_its_beginning() {
    let steps: usize = std::env::var("VTRAIN_SOAK").map_or(120, |n| n.parse().unwrap());
    let settled = (steps / 2).min(100);
    let run = Run::new(&format!(
        "train: {{steps: {steps}, batch_size: 2}}\nlora: {{rank: 2, alpha: 4, dropout: 0.1}}\n\
         checkpoint: {{every: 20, limit: 3}}\n\
         validation: {{every: {settled}, prompts: [{{prompt: a ball, num_frames: 9, height: 32, width: 48, steps: 2}}]}}\n"
    ));
    let mut child = run.start();
    let mut looks: Vec<Look> = Vec::new();
    while child.try_wait().unwrap().is_none() {
        let step = run.lines();
        if step >= settled {
            looks.extend(look(&child, step));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success(), "{}", run.said());

    // Steps right after the first validation that counts, and the last ones.
    let (early, late) = (settled + 1..=settled + 15, steps - 15..=steps - 1);
    let of = |range: &std::ops::RangeInclusive<usize>| -> (u64, usize) {
        let there = || looks.iter().filter(|look| range.contains(&look.step));
        let (resident, files) = (median(there().map(|l| l.resident)), median(there().map(|l| l.files)));
        (resident, files)
    };
    let ((early_resident, early_files), (late_resident, late_files)) = (of(&early), of(&late));
    let growth = late_resident as f64 / early_resident as f64 - 1.0;
    let times: Vec<f64> = fs::read_to_string(run.out().join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["step_seconds"]
                .as_f64()
                .unwrap()
        })
        .collect();
    let fifth = steps / 5;
    let (first_times, last_times) = (&times[settled.min(steps - fifth)..][..fifth], &times[steps - fifth..]);
    println!(
        "{steps} steps: resident {early_resident} kB behind step {settled}, {late_resident} kB at the end ({:+.2}%); open \
         files {early_files} and {late_files}; a step {:.2} ms, and {:.2} ms over the last fifth (medians)",
        100.0 * growth,
        1e3 * median(first_times.iter().copied()),
        1e3 * median(last_times.iter().copied()),
    );
    assert!(growth < 0.02, "memory grew by {:.2}%", 100.0 * growth);
    assert_eq!(early_files, late_files, "open files");

    // Exact rotation, nothing unfinished.
    let newest = (0..3).rev().map(|n| format!("step-{:06}", steps - 20 * n));
    assert_eq!(run.checkpoints(), newest.collect::<Vec<_>>());
    assert_eq!(names(&run.out().join("checkpoints")).len(), 3);
    let unfinished = files_below(&run.out());
    let unfinished = unfinished
        .iter()
        .filter(|path| path.to_string_lossy().contains("/.vtrain-"));
    assert_eq!(unfinished.count(), 0);

    // Both logs, and a round of videos every so often.
    assert_eq!(run.lines(), steps);
    let told: BTreeMap<String, Vec<i64>> = watching::told(&run.out());
    let all: Vec<i64> = (1..=steps as i64).collect();
    for tag in ["loss", "lr", "grad_norm", "step_seconds"] {
        assert_eq!(told[tag], all, "{tag}");
    }
    let rounds: Vec<i64> = (0..=steps as i64).filter(|step| step % settled as i64 == 0).collect();
    assert_eq!(told["validation/00-a-ball"], rounds);
    assert_eq!(names(&run.out().join("validation")).len(), rounds.len());
}
