//! Small or read-only file systems, if a test may mount some: in a mount namespace of its own.

use std::fs;
use std::process::{Command, Output};

use super::{FINAL, Run, assert_failed, stderr, straight};

/// Runs a script in which `$OUT` is the run's output folder and `$VTRAIN` starts it, after mounting something there.
fn mounted(run: &Run, mount: &str, script: &str) -> Output {
    fs::create_dir_all(run.out()).unwrap();
    let shell = |how: &str, script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args([how, "sh", "-c", script]).env("OUT", run.out());
        unshare.env("BIN", env!("CARGO_BIN_EXE_vtrain")).env("RUN", run.file());
        unshare.output().expect("unshare is there")
    };
    // As root; else as the root of a user namespace, where those are allowed.
    let how = match shell("-m", mount).status.success() {
        true => "-m",
        false => "-rm",
    };
    shell(
        how,
        &format!("set -e; {mount}; vtrain() {{ \"$BIN\" --config \"$RUN\"; }}; {script}"),
    )
}

#[test]
#[ignore = "needs mounts: leave to mount something in a namespace of its own (unshare -m)"]
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
        let output = mounted(&run, &mount, &script);
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
                assert!(before.contains("free some space there"), "{size} KiB: {said}");
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
#[ignore = "needs mounts: leave to mount something in a namespace of its own (unshare -m)"]
fn a_read_only_folder_ends_a_run_in_words() {
    let run = Run::new();
    let mount = "mount --bind \"$OUT\" \"$OUT\" && mount -o remount,ro,bind \"$OUT\"";
    let output = mounted(&run, mount, "vtrain");
    assert_failed(&output, &["Read-only file system", "choose a writable folder"]);
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
