//! Tests that need more than cargo: each is ignored for a reason that begins with `needs` and a word of
//! `scripts/setup/needs.sh`, which tells `scripts/test.sh` what is available. None ends early and passes silently.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::settings::names_of_tests;

/// The Python of tests that need one.
pub fn python() -> PathBuf {
    let named = std::env::var_os("VTRAIN_PYTHON");
    named
        .expect("VTRAIN_PYTHON names a Python with what scripts/setup/requirements.txt lists")
        .into()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All sources of tests but this one, by their paths.
fn sources() -> Vec<(PathBuf, String)> {
    let (mut waiting, mut sources) = (vec![root().join("tests")], Vec::new());
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("tests/needs.rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.push((path, text));
            }
        }
    }
    assert!(sources.len() > 90, "{}", sources.len());
    sources
}

/// Lines of tests that end before their end, or that look for a Python by themselves: where, and what.
fn faults(path: &Path, text: &str) -> Vec<String> {
    let known = needs();
    let (mut faults, mut is_test, mut in_test) = (Vec::new(), false, false);
    for (number, line) in text.lines().enumerate() {
        let mut say = |what: &str| faults.push(format!("{}:{}: {what}", path.display(), number + 1));
        let start = line.trim_start();
        match start {
            "#[test]" => is_test = true,
            _ if is_test && start.starts_with("fn ") => (is_test, in_test) = (false, true),
            _ if line == "}" => in_test = false,
            _ => {}
        }
        let code = line.split('"').next().unwrap_or_default(); // up to the first text
        let returns = ["return;", "return "].iter().any(|word| start.starts_with(word));
        if in_test && (returns || code.contains("{ return")) {
            say("a test ends early and counts as passed; ignore it for a reason that begins with needs");
        }
        if line.contains("\"VTRAIN_PYTHON\"") {
            say("ask needs::python(), and ignore the test where there is none");
        }
        if line.contains("println!(\"skipped") {
            say("a test that cannot run here is ignored");
        }
        let reason = line.split_once("ignore = \"").or_else(|| line.split_once("#[ignore"));
        if reason.is_some_and(|(_, reason)| !known.contains(need(reason))) {
            say("the reason begins with needs and a word that scripts/setup/needs.sh knows");
        }
    }
    faults
}

/// `python` of `needs python: VTRAIN_PYTHON names one`.
fn need(reason: &str) -> &str {
    let need = reason.strip_prefix("needs ").and_then(|rest| rest.split_once(": "));
    need.map_or("", |(need, _)| need)
}

/// The words that the script knows.
fn needs() -> BTreeSet<String> {
    let script = fs::read_to_string(root().join("scripts/setup/needs.sh")).unwrap();
    let words = script
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("need ")?.split(' ').next());
    words.map(String::from).collect()
}

#[test]
fn a_test_that_cannot_run_somewhere_is_ignored_there_for_a_reason_and_never_passes() {
    let faults: Vec<String> = sources().iter().flat_map(|(path, text)| faults(path, text)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn tests_that_pass_without_having_run_are_found() {
    let found = |text: &str| faults(Path::new("a.rs"), text).len();
    let test = |line: &str| format!("#[test]\nfn a_test() {{\n    if nothing() {{\n        {line}\n    }}\n}}\n");
    assert_eq!(found(&test("return;")), 1);
    assert_eq!(found(&test(&format!("return say({0}no{0});", '"'))), 1);
    assert_eq!(found(&test("let Some(python) = browser() else { return };")), 1);
    assert_eq!(found(&test(&format!("println!({}skipped: no\");", '"'))), 1);
    assert_eq!(found(&test(&format!("std::env::var_os({}VTRAIN_PYTHON\")", '"'))), 1);
    assert_eq!(found(&format!("#[{}]\n", "ignore")), 1);
    assert_eq!(found(&format!("#[{} = \"slow\"]\n", "ignore")), 1);
    assert_eq!(found(&format!("#[{} = \"needs luck: a lot\"]\n", "ignore")), 1);
    assert_eq!(found(&format!("#[{} = \"needs python: one\"]\n", "ignore")), 0);
    assert_eq!(found("fn helper() {\n    return;\n}\n"), 0);
}

#[test]
fn every_need_that_the_script_knows_is_one_of_some_test() {
    let sources = sources();
    for need in needs() {
        let reason = format!("ignore = \"needs {need}: ");
        assert!(sources.iter().any(|(_, text)| text.contains(&reason)), "{need}");
    }
}

/// Output of `scripts/setup/needs.sh` on a machine that has nothing or all of what tests may need, and lacks `but`: the
/// tests that are left out, and nextest's filter.
fn told(here: bool, but: &str) -> (BTreeSet<String>, String) {
    let script = format!(
        "say() {{ :; }}; VTRAIN_MINIMAL_FFMPEG=none; source scripts/setup/needs.sh; \
         for check in $(compgen -A function | grep -E '^(has|is|may)_|^python_has$'); do eval \"$check() {{ {here}; }}\"; done; \
         {but}; find_needs; tell_absent; printf 'absent %s\\n' ${{absent[@]+\"${{absent[@]}}\"}}; echo \"filter $(without_absent)\""
    );
    let mut bash = Command::new("bash");
    let output = bash.args(["-euc", &script]).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let absent = said.lines().filter_map(|line| line.strip_prefix("absent "));
    let filter = said.lines().find_map(|line| line.strip_prefix("filter ")).unwrap();
    (
        absent.filter(|name| !name.is_empty()).map(String::from).collect(),
        filter.to_string(),
    )
}

#[cfg(unix)]
#[test]
fn the_script_leaves_out_the_very_tests_that_are_ignored_by_their_full_names() {
    let (absent, _) = told(false, ":");
    let unknown: Vec<_> = absent.difference(&names_of_tests()).cloned().collect();
    assert!(unknown.is_empty(), "no such tests: {unknown:?}");
    let mut list = Command::new(std::env::current_exe().unwrap());
    let ignored = list.args(["--list", "--ignored"]).output().unwrap();
    let ignored = String::from_utf8(ignored.stdout).unwrap();
    let ignored: Vec<&str> = ignored.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    assert!(ignored.len() > 20, "{ignored:?}");
    for name in ignored {
        assert!(
            absent.contains(name),
            "{name} is ignored, and scripts/setup/needs.sh does not find it"
        );
    }
}

#[cfg(unix)]
#[test]
fn the_script_leaves_out_nothing_where_all_is_there_and_what_needs_mpi_where_that_is_not() {
    assert_eq!(told(true, ":"), (BTreeSet::new(), "all()".to_string()));
    let (absent, filter) = told(true, "has_mpi() { false; }");
    assert!(absent.iter().all(|name| name.starts_with("dist::")), "{absent:?}");
    assert!(filter.starts_with("all() - test(=dist::"), "{filter}");
    assert!(
        filter.contains("- test(=dist::deaths::a_rank_that_hangs_is_named_when_the_time_is_up)"),
        "{filter}"
    );
}
