//! What a test leaves out where something is missing: said, and kept for `scripts/test.sh`, which lists it at the end. Without
//! that a test that could not run would look like one that passed.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// Says why the running test leaves something out. Where `VTRAIN_SKIPPED` names a file, a line there names the test, too.
pub fn say(why: impl Display) {
    println!("skipped: {why}");
    let Some(list) = std::env::var_os("VTRAIN_SKIPPED") else {
        return;
    };
    let thread = std::thread::current();
    // In one piece: tests run side by side, as threads or processes.
    let line = format!("{}: {why}\n", thread.name().unwrap_or("a test")).replace("\n", " ");
    let mut list = OpenOptions::new().create(true).append(true).open(list).unwrap();
    list.write_all((line.trim_end().to_string() + "\n").as_bytes()).unwrap();
}

/// The Python that `VTRAIN_PYTHON` names, with what is in `scripts/requirements.txt`; else says that there is none.
pub fn python(with: &str) -> Option<std::ffi::OsString> {
    let python = std::env::var_os("VTRAIN_PYTHON");
    if python.is_none() {
        say(format!("VTRAIN_PYTHON names no Python with {with}"));
    }
    python
}

#[test]
fn a_test_that_is_left_out_is_kept_by_its_name_in_one_line() {
    const CHILD: &str = "VTRAIN_SKIPPED_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return say("there is no moon\nto bark at");
    }
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("skipped");
    for _ in 0..2 {
        let name = "skipped::a_test_that_is_left_out_is_kept_by_its_name_in_one_line";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", name])
            .env(CHILD, "1")
            .env("VTRAIN_SKIPPED", &list);
        assert!(child.output().unwrap().status.success());
    }
    let line = "skipped::a_test_that_is_left_out_is_kept_by_its_name_in_one_line: there is no moon to bark at\n";
    assert_eq!(std::fs::read_to_string(&list).unwrap(), line.repeat(2));
}
