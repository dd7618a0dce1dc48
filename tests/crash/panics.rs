//! A bug ends the program with one line and exit code 70, on any thread.

use std::process::ExitCode;

use vtrain::process::panics::{self, guarded};

use super::said;
use crate::disk::{again, folder_of_child};

const TEST: &str = "crash::panics::a_panic_on_any_thread_is_one_line_and_exit_code_70";

/// Panics where the parent asks for it, and ends as `main` would.
fn child() -> ! {
    let place = std::env::var("VTRAIN_TEST_PANIC").unwrap();
    let code = guarded(|| {
        match place.as_str() {
            "here" => panic!("the\nfirst {}", 1 + 1),
            "thread" => drop(std::thread::spawn(|| panic!("the second")).join()),
            "rayon" => rayon::scope(|scope| scope.spawn(|_| panic!("the third"))),
            "contained" => assert!(panics::contained(|| panic!("the fourth")).is_none()),
            _ => {}
        }
        ExitCode::SUCCESS
    });
    std::process::exit(if code == ExitCode::SUCCESS { 0 } else { 70 })
}

#[test]
fn a_panic_on_any_thread_is_one_line_and_exit_code_70() {
    if folder_of_child().is_some() {
        child();
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |place: &str, backtrace: &str| {
        let mut command = again(TEST, folder.path(), &[]);
        command.env("VTRAIN_TEST_PANIC", place).env("RUST_BACKTRACE", backtrace);
        command.output().unwrap()
    };
    for (place, words) in [
        ("here", "the first 2"),
        ("thread", "the second"),
        ("rayon", "the third"),
    ] {
        let output = run(place, "0");
        assert_eq!(output.status.code(), Some(70), "{}", said(&output));
        let told = said(&output);
        let start = format!("error: a bug in vtrain: {words} at tests/crash/panics.rs:");
        assert!(told.starts_with(&start) && told.contains("RUST_BACKTRACE=1"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    let told = said(&run("here", "1"));
    assert!(told.contains("backtrace below") && told.lines().count() > 3, "{told}");
    let expected = run("contained", "0");
    assert_eq!((expected.status.code(), said(&expected).as_str()), (Some(0), ""));
}
