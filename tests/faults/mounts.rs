//! Real file systems that are small or read-only, where a test may mount some: in a mount namespace of its own.

use std::fs;
use std::process::{Command, Output};

use super::{FINAL, Run, assert_failed, stderr, straight};

/// Runs a script in which `$OUT` is the run's output folder and `$VTRAIN` starts it. None, and a line that says why, where
/// nothing can be mounted.
fn mounted(run: &Run, mount: &str, script: &str) -> Option<Output> {
    fs::create_dir_all(run.out()).unwrap();
    let shell = |how: &str, script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args([how, "sh", "-c", script]).env("OUT", run.out());
        unshare.env("BIN", env!("CARGO_BIN_EXE_vtrain")).env("RUN", run.file());
        unshare.output()
    };
    let mut why = String::new();
    // As root; else as the root of a user namespace, where those are allowed.
    for how in ["-m", "-rm"] {
        match shell(how, mount) {
            Ok(done) if done.status.success() => {
                let script = format!("set -e; {mount}; vtrain() {{ \"$BIN\" --config \"$RUN\"; }}; {script}");
                return Some(shell(how, &script).unwrap());
            }
            Ok(done) => why = format!("nothing can be mounted here: {}", stderr(&done).trim()),
            Err(error) => why = format!("unshare: {error}"),
        }
    }
    crate::skipped::say(why);
    None
}

#[test]
fn a_small_disk_that_fills_up_keeps_what_was_good_and_the_run_goes_on_once_there_is_room() {
    // Of about 410 KiB that a run takes.
    for size in [40, 120, 200, 250, 300, 350, 390] {
        let run = Run::new();
        let mount = format!("mount -t tmpfs -o size={size}k none \"$OUT\"");
        let kept = run.folder.path().join("kept");
        let script = format!(
            "code=0; vtrain || code=$?; ls \"$OUT/checkpoints\" > '{kept}.steps' 2>/dev/null || true; \
             mount -o remount,size=64m none \"$OUT\"; echo --- >&2; vtrain; \
             cp \"$OUT/{FINAL}\" '{kept}'; cp \"$OUT/metrics.jsonl\" '{kept}.jsonl'; exit $code",
            kept = kept.display()
        );
        let Some(output) = mounted(&run, &mount, &script) else {
            return;
        };
        let said = stderr(&output);
        let (before, after) = said.split_once("---\n").expect(&said);
        assert!(
            !said.contains("panicked") && !said.contains("damaged"),
            "{size} KiB: {said}"
        );
        match output.status.code() {
            Some(0) => assert!(!before.contains("error: "), "{size} KiB: {said}"),
            code => {
                assert_eq!(code, Some(5), "{size} KiB: {said}");
                assert!(before.contains("make room there"), "{size} KiB: {said}");
            }
        }
        let steps = fs::read_to_string(kept.with_extension("steps")).unwrap();
        if let Some(newest) = steps.lines().filter(|name| name.starts_with("step-")).max() {
            assert!(
                after.contains(&format!("checkpoints/{newest}, after step")),
                "{size} KiB: {said}"
            );
        }
        println!(
            "{size} KiB: exit code {:?}, checkpoints {:?}",
            output.status.code(),
            steps.lines().collect::<Vec<_>>()
        );
        assert!(
            fs::read(&kept).unwrap() == straight().adapter,
            "{size} KiB: the adapters differ"
        );
        let lines = fs::read_to_string(kept.with_extension("jsonl")).unwrap();
        assert_eq!(lines.lines().count(), 3, "{size} KiB: {lines}");
    }
}

#[test]
fn a_read_only_folder_ends_a_run_in_words() {
    let run = Run::new();
    let mount = "mount --bind \"$OUT\" \"$OUT\" && mount -o remount,ro,bind \"$OUT\"";
    if let Some(output) = mounted(&run, mount, "vtrain") {
        assert_failed(&output, &["Read-only file system", "name a place that may be written"]);
    }
}

/// A limit on file sizes is a quota that every system has; its signal must not end the run.
#[cfg(target_os = "linux")]
#[test]
fn a_limit_on_file_sizes_ends_a_run_in_words() {
    let run = Run::new();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 8; exec \"$0\" --config \"$1\""]);
    let output = shell
        .arg(env!("CARGO_BIN_EXE_vtrain"))
        .arg(run.file())
        .output()
        .unwrap();
    assert_failed(
        &output,
        &[
            "captions/",
            "cannot be written: File too large",
            "raise the limit on file sizes (ulimit -f)",
        ],
    );
}
