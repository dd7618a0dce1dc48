//! Every key of a run file and every flag of every command arrives where it is used: two tables name the test that fails when
//! it does not. A key or a flag without a line in its table fails here, and so does a line whose test is gone.

mod datasets; // keys of a data set, in what a survey lists
mod flags; // the table of flags
mod keys; // the table of keys, and which of them decide what a run learns
mod prompts; // validation's prompts and sample's flags, in the clips that they make
mod runs; // keys that only a whole run shows
mod trainer; // keys that the trainer holds

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The paths of all tests here, as the test binary lists them: read from the sources.
pub fn names_of_tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), "", &mut names);
    names
}

fn collect(folder: &Path, module: &str, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let module = format!("{module}{stem}::");
        if path.is_dir() && stem != "fixtures" {
            collect(&path, &module, names);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            read(&fs::read_to_string(&path).unwrap(), &module, names);
        }
    }
}

/// The tests of one file, those of modules within it too.
fn read(text: &str, module: &str, names: &mut BTreeSet<String>) {
    let (mut inner, mut is_test) = (String::new(), false);
    for line in text.lines() {
        let start = line.trim_start().trim_start_matches("pub ");
        if let Some(name) = line
            .trim_start_matches("pub ")
            .strip_prefix("mod ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            inner = format!("{name}::");
        } else if line == "}" {
            inner.clear();
        } else if start == "#[test]" {
            is_test = true;
        } else if let (true, Some(rest)) = (is_test, start.strip_prefix("fn ")) {
            let name = rest.split('(').next().unwrap();
            names.insert(format!("{module}{inner}{name}"));
            is_test = false;
        }
    }
}

/// Returns the problems of a table of settings and their tests: missing entries, entries that no longer exist, tests
/// that do not exist.
pub fn faults<'a>(there: &BTreeSet<String>, table: impl Iterator<Item = (String, &'a str)>) -> Vec<String> {
    let tests = names_of_tests();
    let (mut faults, mut listed) = (Vec::new(), BTreeSet::new());
    for (name, test) in table {
        if !there.contains(&name) {
            faults.push(format!("{name} is in the table, and nowhere else"));
        }
        if !tests.contains(test) {
            faults.push(format!("{name}: there is no test {test}"));
        }
        if !listed.insert(name.clone()) {
            faults.push(format!("{name} is in the table twice"));
        }
    }
    let missing = there.difference(&listed);
    faults.extend(missing.map(|name| format!("{name} has no test that fails when its value does not arrive")));
    faults
}

#[test]
fn tests_are_found_by_the_names_that_the_test_binary_has_for_them() {
    let tests = names_of_tests();
    assert!(tests.len() > 500, "{}", tests.len());
    let binary = std::env::current_exe().unwrap();
    let listed = std::process::Command::new(binary).arg("--list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let listed: BTreeSet<String> = listed
        .lines()
        .filter_map(|line| Some(line.strip_suffix(": test")?.to_string()))
        .collect();
    // A macro makes those of fuzzing and of kernels. Others in the sources are for one system only, or for builds without CUDA.
    let unknown: Vec<_> = listed
        .difference(&tests)
        .filter(|name| !name.starts_with("fuzz::") && !name.starts_with("kernels::"))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
