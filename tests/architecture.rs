//! Layers of the source tree: a module imports only from lower layers, no family imports another, and files have no
//! circular imports.

mod circles;
mod names;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Modules at the top of `src/`, with their layer.
const FLOORS: &[(&str, u8)] = &[
    ("disk", 0),
    ("finite", 0),
    ("hub", 0),
    ("distributed", 0),
    ("launch", 0),
    ("magic", 0),
    ("named_settings", 0),
    ("paths", 0),
    ("problems", 0),
    ("process", 0),
    ("rng", 0),
    ("url", 0),
    ("protobuf_wire", 0),
    ("ops", 1),              // above `process`: what is allocated is noted
    ("lock", 1),             // above `disk`: errors of writing
    ("run_dir", 1),          // above `disk`: folders are swept
    ("video", 1),            // above `disk`: clips are written
    ("diffusers_config", 1), // above `magic`: what is no text is refused
    ("optim", 2),            // above `ops`: its kernels are launched from there
    ("nn", 2),
    ("diffusion", 2),
    ("text", 3),
    ("vision", 3),
    ("data", 3),
    ("lora", 3),
    ("models", 4),
    ("sample", 5),
    ("train", 6), // above `sample`: validation samples
    ("config", 7),
    ("report", 7), // above `train`: it reads what training leaves
    ("migrate", 8),
    ("plan", 8), // above `config`: it varies a run's settings
    ("commands", 9),
    ("cli", 10),
    ("main", 11),
];

/// Lines of code that the folder of each family in src/models may have at most.
const FAMILY_LINES: &[(&str, usize)] = &[
    ("allegro", 1000),
    ("hunyuan_video", 1000),
    ("ltx_video", 1000),
    ("mochi", 1000),
    ("wan", 1000),
    ("cogvideox", 1000),
];

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// Returns the violations in one source file, given as its path below `src/` without `.rs`, and its text.
fn breaches(file: &str, text: &str) -> Vec<String> {
    let here: Vec<&str> = file.split('/').filter(|part| *part != "mod").collect();
    if here == ["lib"] {
        return Vec::new();
    }
    let Some(own_floor) = floor(here[0]) else {
        return vec![format!(
            "{file}: the module '{}' has no floor; add it to FLOORS",
            here[0]
        )];
    };
    let mut wrong = Vec::new();
    for import in imports(&here, text) {
        let target: Vec<&str> = import.split("::").collect();
        match floor(target[0]) {
            _ if target[0] == here[0] => {
                let family = |path: &[&str]| {
                    (path[0] == "models")
                        .then(|| path.get(1).copied())
                        .flatten()
                        .map(String::from)
                };
                let families = (family(&here), family(&target));
                if let (Some(from), Some(to)) = families
                    && from != to
                    && is_family(&to)
                {
                    wrong.push(format!("{file}: the family '{from}' imports the family '{to}'"));
                }
            }
            Some(_) if target[0] == "models" && target.get(1).is_some_and(|name| is_family(name)) => {
                wrong.push(format!("{file}: names the family '{}'; ask models::Family", target[1]));
            }
            Some(floor) if floor < own_floor => {}
            Some(floor) => {
                wrong.push(format!(
                    "{file}: floor {own_floor} imports '{import}' from floor {floor}"
                ));
            }
            None => wrong.push(format!("{file}: imports '{import}', which has no floor")),
        }
    }
    wrong
}

fn is_family(name: &str) -> bool {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/models")
        .join(name)
        .is_dir()
}

/// Paths below the crate's root that `text` names by `crate::` or by climbing with `super::`, two parts deep.
fn imports(here: &[&str], text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .filter(|line| !line.trim_start().starts_with("pub(in"))
        .collect::<Vec<_>>()
        .join("\n");
    let climb = "super::".repeat(here.len());
    let mut found = BTreeSet::new();
    for root in ["crate::", climb.as_str()] {
        for (at, _) in code.match_indices(root) {
            if !code[..at].ends_with("::") {
                found.extend(
                    heads(&code[at + root.len()..])
                        .into_iter()
                        .filter(|head| !head.is_empty()),
                );
            }
        }
    }
    found
}

/// `a::b::C` gives `a::b`; `{a::b, c::{d, e}}` gives `a::b`, `c::d`, `c::e`.
fn heads(rest: &str) -> Vec<String> {
    let rest = rest.trim_start();
    if let Some(inner) = rest.strip_prefix('{') {
        return items(inner).iter().flat_map(|item| heads(item)).collect();
    }
    let name = |text: &str| {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let first = name(rest);
    match rest[first.len()..].strip_prefix("::") {
        Some(after) if after.trim_start().starts_with('{') => {
            let inner = &after.trim_start()[1..];
            items(inner)
                .iter()
                .map(|item| format!("{first}::{}", name(item.trim_start())))
                .collect()
        }
        Some(after) => vec![format!("{first}::{}", name(after))],
        None => vec![first],
    }
}

/// The comma-separated items up to the brace that closes them.
fn items(inner: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(&inner[start..at]);
                return found;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

fn sources(folder: &Path, below: &str, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("source names are UTF-8")
            .to_string();
        if path.is_dir() {
            sources(&path, &format!("{below}{name}/"), found);
        } else if let Some(stem) = name.strip_suffix(".rs") {
            found.push((
                format!("{below}{stem}"),
                fs::read_to_string(&path).expect("source is UTF-8"),
            ));
        }
    }
}

/// Lines that are neither blank nor a comment alone.
fn code_lines(text: &str) -> usize {
    let code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    text.lines().filter(code).count()
}

#[test]
fn a_family_is_one_small_folder() {
    assert_eq!(code_lines("//! Doc.\n\nlet x = 1; // one\n    // none\n  }\n"), 2);
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/models");
    let folders = fs::read_dir(&models).expect("src is readable");
    let families = folders.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()));
    assert_eq!(
        families.count(),
        FAMILY_LINES.len(),
        "every family has its line in FAMILY_LINES"
    );
    for (family, most) in FAMILY_LINES {
        let mut files = Vec::new();
        sources(&models.join(family), "", &mut files);
        let lines: usize = files.iter().map(|(_, text)| code_lines(text)).sum();
        assert!(lines > 100, "{family}: the sources were not found");
        assert!(
            lines <= *most,
            "src/models/{family}: {lines} lines of code, more than {most}; what other families could use belongs outside"
        );
    }
}

#[test]
fn modules_import_only_from_lower_floors() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    assert!(files.len() > 10, "the sources were not found");
    let wrong: Vec<String> = files.iter().flat_map(|(file, text)| breaches(file, text)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_upward_import_is_a_breach() {
    assert!(breaches("data/dataset", "use crate::video::Clip;").is_empty());
    assert!(breaches("data/dataset", "// crate::models\nuse super::bucket::Bucket;").is_empty());
    for upward in [
        "use crate::models::FamilyName;",
        "use crate::{video::Clip, models};",
        "use crate::{\n    video::{Clip, Frames},\n    train::recipe,\n};",
        "fn f() { crate::config::load() }",
        "use super::super::models::FamilyName;",
        "use crate::lora::Adapters;", // the same floor is no lower floor
    ] {
        assert_eq!(breaches("data/dataset", upward).len(), 1, "{upward}");
    }
    assert_eq!(breaches("attic/mod", "").len(), 1, "a module without a floor");
}

#[test]
fn a_family_that_is_named_outside_of_models_is_a_breach() {
    assert_eq!(
        breaches("train/step", "use crate::models::cogvideox::CogVideoX;").len(),
        1
    );
    assert_eq!(
        breaches("commands/train/mod", "let x = crate::models::cogvideox::SPEC;").len(),
        1
    );
    assert!(breaches("train/step", "use crate::models::family::LatentSize;").is_empty());
}

#[test]
fn a_family_that_imports_another_is_a_breach() {
    // Only folders of src/models are families; what is shared there may be imported.
    assert!(breaches("models/wan/dit", "use crate::models::Config;").is_empty());
    assert!(breaches("models/cogvideox/dit", "use crate::models::cogvideox::vae::Vae;").is_empty());
    assert_eq!(
        breaches("models/wan/dit", "use crate::models::cogvideox::SPEC;").len(),
        1
    );
    assert_eq!(
        breaches(
            "models/wan/dit",
            "use crate::{nn::linear, models::{cogvideox::dit, Config}};"
        )
        .len(),
        1
    );
}
