//! Two processes at once: one output directory has one run; one cache may have several.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use vtrain::lock::{Holder, Lock};

use super::{Run, files_below, record, said, wait_for};

const LONG: &str = "train: {steps: 100000}\nlora: {rank: 2, alpha: 2}\ncheckpoint: {every: 5}\n";

#[test]
fn a_second_run_is_told_who_holds_the_folder_and_a_dead_holder_holds_nothing() {
    let run = Run::new(LONG);
    let mut first = run.start();
    wait_for("the first steps", || run.lines() > 6);

    let second = run.command("train").output().unwrap();
    assert_eq!(second.status.code(), Some(5), "{}", said(&second));
    let told = said(&second);
    let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("error:")).collect();
    let host = Holder::here().host;
    let holder = format!("process {} on {host} is training there", first.id());
    assert!(errors.len() == 1 && errors[0].contains(&holder), "{told}");
    assert!(first.try_wait().unwrap().is_none(), "the first goes on");
    let (before, report) = (run.lines(), report(&run));
    assert!(report, "reading needs no lock");
    wait_for("more steps", || run.lines() > before);

    // Killed, it leaves the file, which blocks nothing.
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(run.out().join(".lock").exists());
    let steps = run.checkpoints().pop().unwrap();
    let steps: u64 = steps.trim_start_matches("step-").parse().unwrap();
    let text = fs::read_to_string(run.path("run.yaml")).unwrap();
    fs::write(
        run.path("run.yaml"),
        text.replace("steps: 100000", &format!("steps: {}", steps + 2)),
    )
    .unwrap();
    run.finish();
    let told = run.said();
    assert!(
        told.contains(&format!("removed the stale lock of process {} on {host}", first.id())),
        "{told}"
    );
    assert!(!run.out().join(".lock").exists());
}

fn report(run: &Run) -> bool {
    let page = run.path("page.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
    let made = command.arg("report").arg(run.out()).arg("--output").arg(&page);
    let made = made.stdin(Stdio::null()).output().unwrap();
    println!("{}", said(&made));
    made.status.success() && page.exists()
}

#[test]
fn a_lock_is_free_once_it_is_dropped_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a/out");
    let lock = Lock::take(&out).unwrap();
    let here = Holder::here();
    let refused = Lock::take(&out).unwrap_err().to_string();
    assert!(refused.starts_with(&out.display().to_string()), "{refused}");
    assert!(
        refused.contains(&format!("process {} on {}", here.pid, here.host)),
        "{refused}"
    );
    drop(lock);
    assert!(!out.exists());
    // Nonsense in the file, of a process that is gone.
    fs::create_dir_all(&out).unwrap();
    fs::write(out.join(".lock"), b"\xff\n\n 1").unwrap();
    let lock = Lock::take(&out).unwrap();
    assert_eq!(
        fs::read_to_string(out.join(".lock")).unwrap(),
        format!("{} {}\n", here.host, here.pid)
    );
    drop(lock);
    assert!(out.exists(), "a folder that was there stays");
}

/// Identifies one writing of a file: its number and the time of its last change.
type Writing = (u64, i64, i64);

fn writings(cache: &Path) -> BTreeMap<PathBuf, Writing> {
    let records = files_below(cache).into_iter().filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.ends_with(".safetensors")
    });
    let writing = |path: PathBuf| {
        let metadata = fs::metadata(&path).ok()?;
        Some((path, (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())))
    };
    records.filter_map(writing).collect()
}

#[test]
fn two_precomputes_at_once_fill_one_cache_as_one_would_and_write_no_record_twice() {
    let alone = Run::new("");
    let done = alone.command("precompute").output().unwrap();
    assert!(done.status.success(), "{}", said(&done));
    let contents = |run: &Run| -> BTreeMap<PathBuf, Vec<u8>> {
        let cache = run.out().join("precomputed");
        let records = writings(&cache).into_keys();
        records
            .map(|path| (path.strip_prefix(&cache).unwrap().into(), record(&path)))
            .collect()
    };
    let expected = contents(&alone);
    assert_eq!(expected.len(), 4 + 5, "clips, captions, the empty caption");

    for round in 0..5 {
        let run = Run::new("");
        let cache = run.out().join("precomputed");
        let mut children = [(); 2].map(|()| {
            std::thread::sleep(Duration::from_millis(7 * round));
            run.command("precompute").spawn().unwrap()
        });
        let mut seen: BTreeMap<PathBuf, Writing> = BTreeMap::new();
        loop {
            let over = children.iter_mut().all(|child| child.try_wait().unwrap().is_some());
            for (path, writing) in writings(&cache) {
                let first = *seen.entry(path.clone()).or_insert(writing);
                assert_eq!(first, writing, "{} was written again", path.display());
            }
            if over {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
        }
        assert!(contents(&run) == expected, "round {round}");
        let left = files_below(&cache);
        assert_eq!(left.len(), expected.len() + 1, "only known.json beside: {left:?}");
    }
}
