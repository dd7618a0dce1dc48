//! Files are written atomically.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vtrain::disk::{self, TempFile, WriteError};

/// Names in a folder, hidden ones too.
pub fn names(folder: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names
}

/// Starts this test binary again for one test, which finds the folder that it works on in `VTRAIN_TEST_FOLDER`.
pub fn again(test: &str, folder: &Path, through: &[&str]) -> Command {
    let binary = std::env::current_exe().unwrap();
    let mut all: Vec<OsString> = through.iter().map(OsString::from).collect();
    all.push(binary.into());
    let mut command = Command::new(&all[0]);
    command
        .args(&all[1..])
        .args(["--exact", test, "--nocapture"])
        .env("VTRAIN_TEST_FOLDER", folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Set where this is a test that was started [`again`].
pub fn folder_of_child() -> Option<PathBuf> {
    std::env::var_os("VTRAIN_TEST_FOLDER").map(PathBuf::from)
}

/// Kills a child some milliseconds after it has come to something.
pub fn kill_after(mut child: Child, milliseconds: u64, come_to: impl Fn() -> bool) {
    let started = Instant::now();
    while !come_to() && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(600), "it does not come to it");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(milliseconds));
    let _ = child.kill(); // one that has panicked is told below
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_file_is_written_with_its_folder_and_replaces_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/c.txt");
    disk::write_whole(&path, b"old").unwrap();
    disk::write_whole(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(names(path.parent().unwrap()), ["c.txt"]);
}

#[cfg(unix)]
#[test]
fn others_may_read_what_any_new_file_lets_them_read() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
    fs::write(folder.path().join("any"), b"").unwrap();
    disk::write_whole(&folder.path().join("ours"), b"").unwrap();
    assert_eq!(mode("ours"), mode("any"));
    fs::create_dir(folder.path().join("any folder")).unwrap();
    disk::write_folder_whole(&folder.path().join("our folder"), |_| Ok::<_, WriteError>(())).unwrap();
    assert_eq!(mode("our folder"), mode("any folder"));
}

#[test]
fn an_unfinished_file_vanishes_and_leaves_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    disk::write_whole(&path, b"old").unwrap();
    let mut beside = TempFile::of(&path).unwrap();
    beside.write(b"half").unwrap();
    assert_eq!(names(folder.path()).len(), 2);
    drop(beside);
    assert_eq!(names(folder.path()), ["clip.mp4"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn what_cannot_be_written_is_told_by_its_own_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"").unwrap();
    let below_a_file = folder.path().join("file/below/a.txt");
    let told = disk::write_whole(&below_a_file, b"").unwrap_err().to_string();
    assert!(
        told.starts_with(&folder.path().join("file/below").display().to_string()),
        "{told}"
    );
    let a_folder = folder.path().join("folder");
    fs::create_dir(&a_folder).unwrap();
    let told = disk::write_whole(&a_folder, b"").unwrap_err().to_string();
    assert!(
        told.starts_with(&format!("{}: cannot be written: ", a_folder.display())),
        "{told}"
    );
    assert_eq!(names(folder.path()), ["file", "folder"]);
}

#[test]
fn a_folder_that_cannot_be_completed_leaves_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step");
    let fill = |text: &'static str| {
        move |at: &Path| {
            fs::create_dir(at.join("inner"))?;
            fs::write(at.join("inner/a.txt"), text)?;
            anyhow::Ok(())
        }
    };
    disk::write_folder_whole(&path, fill("old")).unwrap();
    let failed = disk::write_folder_whole(&path, |at| {
        fs::write(at.join("b.txt"), b"half")?;
        anyhow::bail!("enough")
    });
    assert_eq!(failed.unwrap_err().to_string(), "enough");
    assert_eq!(fs::read(path.join("inner/a.txt")).unwrap(), b"old");
    disk::write_folder_whole(&path, fill("new")).unwrap();
    assert_eq!(fs::read(path.join("inner/a.txt")).unwrap(), b"new");
    assert_eq!(names(folder.path()), ["step"]);
    assert_eq!(names(&path), ["inner"]);
}

#[test]
fn sweeping_takes_what_was_abandoned_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at(".vtrain-aBcDeF"), b"left").unwrap();
    fs::create_dir(at(".vtrain-GhIjKl")).unwrap();
    fs::write(at(".vtrain-GhIjKl/a"), b"left").unwrap();
    fs::write(at(".hidden"), b"not ours").unwrap();
    fs::write(at("seen"), b"").unwrap();
    let mut in_use = TempFile::of(&at("film.mp4")).unwrap();
    in_use.write(b"half").unwrap();
    disk::write_folder_whole(&at("z"), |inside| {
        fs::write(inside.join("a"), b"").unwrap();
        disk::sweep(folder.path());
        assert!(inside.join("a").exists());
        Ok::<_, WriteError>(())
    })
    .unwrap();
    in_use.keep().unwrap();
    assert_eq!(names(folder.path()), [".hidden", "film.mp4", "seen", "z"]);
    disk::sweep(&at("no such folder"));
}

#[test]
fn what_is_being_written_is_not_swept_however_often_others_sweep() {
    let folder = tempfile::tempdir().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                disk::sweep(folder.path());
            }
        });
        let written = (0..500).try_for_each(|i| {
            disk::write_whole(&folder.path().join(format!("file-{i}")), b"whole")?;
            let fill = |unfinished: &Path| {
                let file = unfinished.join("file");
                fs::write(&file, b"whole").map_err(WriteError::at(&file))
            };
            disk::write_folder_whole(&folder.path().join(format!("folder-{i}")), fill)
        });
        done.store(true, Ordering::Relaxed);
        written.unwrap();
    });
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1000);
}

#[test]
fn whoever_is_killed_leaves_the_old_or_the_new_and_the_rest_is_swept() {
    const PARTS: usize = 200_000;
    let contents = |n: usize| format!("{n} ").repeat(PARTS);
    if let Some(folder) = folder_of_child() {
        for n in 0.. {
            disk::write_whole(&folder.join("file"), contents(n).as_bytes()).unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    for round in 0..8 {
        let mut child = again(
            "disk::whoever_is_killed_leaves_the_old_or_the_new_and_the_rest_is_swept",
            folder.path(),
            &[],
        );
        let child = child.spawn().unwrap();
        kill_after(child, 20 + 7 * round, || folder.path().join("file").exists());
        let text = fs::read_to_string(folder.path().join("file")).unwrap();
        let n = text.split(' ').next().unwrap().parse().unwrap();
        assert!(text == contents(n), "torn in round {round}");
    }
    disk::sweep(folder.path());
    assert_eq!(names(folder.path()), ["file"]);
}
