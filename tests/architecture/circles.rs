//! Circular imports: files that import each other, directly or through others. A file and its own submodules may import
//! each other: they belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The path of a module below `crate`, such as `["nn", "linear"]`.
type Module = Vec<String>;

/// Every module by its path, with its source.
fn modules(files: &[(String, String)]) -> BTreeMap<Module, &str> {
    let path = |file: &str| {
        let parts: Module = file.split('/').map(String::from).collect();
        match parts.split_last() {
            Some((last, folder)) if last == "mod" => folder.to_vec(),
            _ => parts,
        }
    };
    files.iter().map(|(file, text)| (path(file), text.as_str())).collect()
}

/// The paths that a `use` names: `a::{b, c::{D, E}}` gives `a::b`, `a::c::D` and `a::c::E`.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap_or_default();
        return vec![name.split("::").map(|part| part.trim().to_string()).collect()];
    };
    let head: Vec<String> = head.split("::").map(|part| part.trim().to_string()).collect();
    let head = &head[..head.len() - 1];
    let items = super::items(rest);
    let items = items.iter().filter(|item| !item.trim().is_empty());
    items
        .flat_map(|item| paths(item))
        .map(|path| [head, &path].concat())
        .collect()
}

/// The module that `path`, written in `here`, leads into.
fn resolve(here: &Module, path: &[String], modules: &BTreeMap<Module, &str>) -> Option<Module> {
    let climbs = path.iter().take_while(|part| *part == "super").count();
    let full = match path.first().map(String::as_str) {
        Some("crate") => path[1..].to_vec(),
        Some("self") => [here, &path[1..]].concat(),
        Some("super") => [&here[..here.len().checked_sub(climbs)?], &path[climbs..]].concat(),
        _ => {
            let child = [here, &path[..1]].concat();
            modules.contains_key(&child).then_some([here, path].concat())?
        }
    };
    let found = (1..=full.len()).rev().map(|length| full[..length].to_vec());
    found
        .into_iter()
        .find(|module| modules.contains_key(module) && module != here)
}

/// The modules that `text`, the source of `here`, names.
fn named(here: &Module, text: &str, modules: &BTreeMap<Module, &str>) -> BTreeSet<Module> {
    let code: Vec<&str> = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let code = code.join("\n");
    let mut named = BTreeSet::new();
    for statement in code.split(';') {
        let tree = statement
            .rsplit_once("\nuse ")
            .or_else(|| statement.rsplit_once(" use "))
            .map(|(_, tree)| tree)
            .or_else(|| statement.strip_prefix("use "));
        let imported = tree.into_iter().flat_map(paths);
        named.extend(imported.filter_map(|path| resolve(here, &path, modules)));
    }
    // Paths in the code itself.
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in code.split(|c| !is_name(c)) {
        let path: Vec<String> = word.split("::").map(String::from).collect();
        if path.len() > 1 && matches!(path[0].as_str(), "crate" | "super" | "self") {
            named.extend(resolve(here, &path, modules));
        }
    }
    named.retain(|module| !module.starts_with(here));
    named
}

/// The circles among files, each as its modules in order.
pub fn circles(files: &[(String, String)]) -> Vec<Vec<String>> {
    let modules = modules(files);
    let edges: BTreeMap<&Module, BTreeSet<Module>> = modules
        .iter()
        .filter(|(module, _)| *module != &["lib".to_string()])
        .map(|(module, text)| (module, named(module, text, &modules)))
        .collect();
    let reached = |from: &Module| {
        let (mut seen, mut waiting) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = waiting.pop() {
            for next in edges.get(&module).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    waiting.push(next.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&Module, BTreeSet<Module>> = edges.keys().map(|module| (*module, reached(module))).collect();
    let mut circles = BTreeSet::new();
    for (module, reaches) in &reached {
        let circle = reaches
            .iter()
            .filter(|other| reached.get(other).is_some_and(|back| back.contains(*module)));
        let circle: Vec<String> = circle.map(|module| module.join("::")).collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

fn source(file: &str, text: &str) -> (String, String) {
    (file.to_string(), text.to_string())
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut files = Vec::new();
    super::sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    let circles = circles(&files);
    let told: Vec<String> = circles.iter().map(|circle| circle.join(", ")).collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

#[test]
fn files_that_import_each_other_are_found() {
    let two = [
        source("nn/mod", "pub mod a;\npub mod b;\npub use a::A;\n"),
        source("nn/a", "use super::b::B;\n"),
        source("nn/b", "use crate::{ops, nn::{a::{A, C}}};\n"),
        source("ops", ""),
    ];
    assert_eq!(circles(&two), [["nn::a", "nn::b"]]);
    // By a path in the code, and over a third.
    let three = [
        source("a", "fn f() { crate::b::g() }\n"),
        source("b", "use crate::c::{self as d};\n"),
        source("c/mod", "mod e;\n"),
        source("c/e", "// use crate::nowhere;\nuse super::super::a;\n"),
    ];
    assert!(circles(&three).is_empty(), "what is below a file is its own");
    let three = [three[0].clone(), three[1].clone(), source("c", "use crate::a::X;\n")];
    assert_eq!(circles(&three), [["a", "b", "c"]]);
    // A parent and its folder belong together.
    let family = [
        source("c/mod", "mod e;\nuse e::E;\npub struct C;\n"),
        source("c/e", "use super::C;\n"),
    ];
    assert!(circles(&family).is_empty());
}
