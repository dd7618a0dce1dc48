//! Disk space is checked before much is written.

use std::fs;
use std::process::Command;

use vtrain::disk::space::{self, NotEnoughSpace};

use super::{Fault, Run, assert_failed, assert_recovers, stderr, straight};

fn with_free(free: u64, from: usize) -> Fault {
    Fault {
        at: from,
        free: Some(free),
        ..Fault::default()
    }
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    ignore = "needs glibc: faults are injected on Linux with glibc only"
)]
fn too_little_room_for_the_cache_is_told_before_anything_is_encoded() {
    let run = Run::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
    command.args(["precompute", "--config"]).arg(run.file());
    let (output, _) = run.under(&with_free(50_000, 0), command);
    // 84.75 KiB of captions and 4.5 KiB of clips, and their headers.
    let words = [
        "out/precomputed: not enough space",
        "112.00 KiB",
        "48.83 KiB are free",
        "free some space there",
    ];
    assert_failed(&output, &words);
    assert!(!stderr(&output).contains("loading"), "{}", stderr(&output));
    for folder in ["clips", "captions"] {
        assert!(!run.out().join("precomputed").join(folder).exists());
    }
    assert_recovers(&run, "no room for the cache");
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    ignore = "needs glibc: faults are injected on Linux with glibc only"
)]
fn too_little_room_for_a_checkpoint_is_told_before_a_step_is_spent_on_it() {
    let run = Run::new();
    let logs = straight()
        .calls
        .iter()
        .position(|call| call.path == "/metrics.jsonl")
        .unwrap();
    let (output, _) = run.under(&with_free(20_000, logs), run.command());
    assert_failed(
        &output,
        &[
            "out/checkpoints: not enough space: a checkpoint takes",
            "19.53 KiB are free",
        ],
    );
    assert_eq!(fs::read(run.out().join("metrics.jsonl")).unwrap(), b"");
    assert_eq!(run.checkpoints(), [0_u64; 0]);
    assert_recovers(&run, "no room for a checkpoint");
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    ignore = "needs glibc: faults are injected on Linux with glibc only"
)]
fn a_checkpoint_that_no_longer_fits_ends_the_run_and_says_from_where_it_goes_on() {
    let run = Run::new();
    let first = straight()
        .calls
        .iter()
        .position(|call| call.path == "/checkpoints/step-000001");
    let (output, _) = run.under(&with_free(20_000, first.unwrap() + 1), run.command());
    let words = [
        "step 2 is not saved",
        "resumes from step 1",
        "not enough space: a checkpoint takes",
    ];
    assert_failed(&output, &words);
    assert_eq!(run.checkpoints(), [1]);
    assert_recovers(&run, "no room for the second checkpoint");
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    ignore = "needs glibc: faults are injected on Linux with glibc only"
)]
fn where_room_is_short_checkpoints_beyond_the_limit_go_first_and_no_others() {
    let run = Run::with("train: {steps: 3}\ncheckpoint: {every: 1, limit: 3}\n");
    run.train();
    assert_eq!(run.checkpoints(), [1, 2, 3]);
    run.write("train: {steps: 4}\ncheckpoint: {every: 1, limit: 2}\n");
    let (output, _) = run.under(&with_free(20_000, 0), run.command());
    assert_failed(&output, &["not enough space: a checkpoint takes"]);
    assert_eq!(run.checkpoints(), [2, 3]);
    run.train();
    assert_eq!(run.checkpoints(), [3, 4]);
}

#[test]
fn room_is_counted_in_blocks_where_the_folder_is_or_will_be() {
    assert_eq!(space::taken([1, 4096, 4097, 0]), 4 * 4096);
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("not/there/yet");
    if cfg!(unix) {
        let free = space::free(&below).unwrap();
        assert!(free > 0 && free < u64::MAX / 2);
        assert_eq!(space::ensure(&below, 0, || "nothing".into()), Ok(()));
        let told = space::ensure(&below, u64::MAX, || "all".into()).unwrap_err();
        assert_eq!(told.needed, u64::MAX);
    }
    let told = NotEnoughSpace {
        folder: "out".into(),
        what: "a checkpoint".into(),
        needed: 3 << 30,
        free: 1 << 20,
    };
    assert_eq!(
        told.to_string(),
        "out: not enough space: a checkpoint takes 3.00 GiB, and 1.00 MiB are free; free some space there"
    );
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    ignore = "needs glibc: faults are injected on Linux with glibc only"
)]
fn too_little_room_for_streamed_blocks_is_told_before_any_of_them_is_stored() {
    let run = Run::new();
    let temporary = run.out().join("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let with = |free: u64, sets: &[&str]| {
        let mut command = run.command();
        command.args([
            "--dry-run",
            "--set=model.offload=group",
            "--set=model.quantization_cache=none",
        ]);
        command.args(sets).env("TMPDIR", &temporary);
        let fault = Fault {
            below: "tmp",
            ..with_free(free, 0)
        };
        run.under(&fault, command).0
    };
    let nf4 = ["--set=model.quantization=nf4"];
    let words = [
        "out/tmp: not enough space: a file for the blocks of ",
        "transformer, which are streamed",
        "TMPDIR names another folder",
        " KiB, and 1000 B are free",
    ];
    assert_failed(&with(1000, &nf4), &words);
    // What the checkpoint's files have as it is computed with needs no other.
    for output in [with(1000, &[]), with(1 << 30, &nf4)] {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
}
