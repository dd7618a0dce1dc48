//! Files of prompts.
//!
//! | name | what is in it |
//! | --- | --- |
//! | `.yaml`, `.yml`, `.json` | a list of prompts, each a text or a mapping |
//! | `.jsonl` | a mapping a line |
//! | others, such as `.txt` | a prompt a line; lines that begin with `#` are comments |
//!
//! The keys of a mapping are those of `validation.prompts` in run files, and `output`, the name of the clip. Blank lines count for
//! nothing.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use crate::config::located::{Found, InvalidConfig, read_text};
use crate::config::yaml::{Node, Origin, Step, Value};
use crate::paths;
use crate::train::validate::{self, Prompt};

/// Key of a clip's name.
const OUTPUT: &str = "output";

/// Endings of clips: files that are written whole or not at all.
const ENDINGS: [&str; 3] = ["mp4", "webm", "gif"];

/// A prompt of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedPrompt {
    /// File and line.
    pub place: String,
    /// The clip to make.
    pub prompt: Prompt,
    /// Path of the clip below the folder of all.
    pub output: PathBuf,
}

/// Reads a file of prompts. What a prompt does not say is as in `defaults`; clips without a name are called
/// `00-a-red-ball.mp4`, by their place in the file.
///
/// # Errors
/// Lists everything that is wrong, by file, line and key.
pub fn read(path: &Path, defaults: &Prompt) -> Result<Vec<ListedPrompt>, InvalidConfig> {
    let text = read_text(path, "a file of prompts")?;
    let folder = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = folder.parent().unwrap_or(Path::new("/"));
    let mut found = Found::new(path, &[]);
    let mut listed = Vec::new();
    let mut names = HashMap::new();
    let nodes = nodes(path, &text, &mut found);
    for (index, mut node) in nodes.into_iter().enumerate() {
        let Origin::Line(line) = node.origin else {
            continue; // a file has lines alone
        };
        let named = take(&mut node, OUTPUT);
        add_defaults(&mut node, defaults);
        let mut prompt: Prompt = found.read(&node, Prompt::check);
        if let Some(image) = &mut prompt.image {
            *image = paths::normalize(&folder.join(&*image));
        }
        let output = match &named {
            Some(named) => output(named).map_err(|why| (named.origin, why)),
            None => Ok(format!("{}.mp4", validate::name(index, &prompt.prompt)).into()),
        };
        let output = output.and_then(|output: PathBuf| match names.insert(output.clone(), line) {
            None => Ok(output),
            Some(other) => Err((node.origin, format!("{} is the clip of line {other}", output.display()))),
        });
        match output {
            Ok(output) => listed.push(ListedPrompt {
                place: format!("{}:{line}", path.display()),
                prompt,
                output,
            }),
            Err((origin, why)) => found.at(origin, &[Step::Key(OUTPUT.into())], why),
        }
    }
    if listed.is_empty() {
        found.at(Origin::Line(0), &[], "has no prompt".into());
    }
    found.judge(listed)
}

/// Returns the prompts of a file as mappings.
fn nodes(path: &Path, text: &str, found: &mut Found) -> Vec<Node> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let text = text.trim_start_matches('\u{feff}');
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    match ending.as_deref() {
        Some("yaml" | "yml" | "json") => list(text, found),
        Some("jsonl") => {
            let parsed = lines.filter_map(|(number, line)| {
                let origin = Origin::Line(number);
                let parsed = serde_json::from_str(line).map_err(|error| {
                    let message = error.to_string();
                    let what = message.split(" at line ").next().unwrap_or_default();
                    format!("{what} at column {}", error.column())
                });
                let node = parsed.and_then(|value| mapping(Node::from_json(value, origin)));
                node.map_err(|why| found.at(origin, &[], why)).ok()
            });
            parsed.collect()
        }
        _ => {
            let prompts = lines.filter(|(_, line)| !line.starts_with('#'));
            let of = |(number, line): (u64, &str)| of_text(line.trim().into(), Origin::Line(number));
            prompts.map(of).collect()
        }
    }
}

/// Returns the prompts of a YAML list.
fn list(text: &str, found: &mut Found) -> Vec<Node> {
    let items = match Node::parse(text) {
        Ok(Node {
            value: Value::List(items),
            ..
        }) => items,
        Ok(_) => {
            found.at(
                Origin::Line(0),
                &[],
                "is no list; write each prompt as an item, '- a red ball'".into(),
            );
            return Vec::new();
        }
        Err(error) => {
            found.at(Origin::Line(error.line), &[], error.message);
            return Vec::new();
        }
    };
    let prompts = items.into_iter().filter_map(|item| {
        let origin = item.origin;
        mapping(item).map_err(|why| found.at(origin, &[], why)).ok()
    });
    prompts.collect()
}

/// Returns a prompt as a mapping; a text alone is one, too.
fn mapping(node: Node) -> Result<Node, String> {
    match node.value {
        Value::Map(_) => Ok(node),
        Value::String(text) => Ok(of_text(text, node.origin)),
        _ => Err("is no prompt: give a text, or a mapping with the key 'prompt'".into()),
    }
}

fn of_text(text: String, origin: Origin) -> Node {
    let prompt = Node {
        value: Value::String(text),
        origin,
    };
    Node {
        value: Value::Map(vec![("prompt".into(), prompt)]),
        origin,
    }
}

/// Takes a key out of a mapping.
fn take(node: &mut Node, key: &str) -> Option<Node> {
    let Value::Map(entries) = &mut node.value else {
        return None;
    };
    let at = entries.iter().position(|(name, _)| name == key)?;
    Some(entries.remove(at).1)
}

/// Adds the keys that a prompt does not give. Steps are given by one key of three.
fn add_defaults(node: &mut Node, defaults: &Prompt) {
    const STEPS: [&str; 3] = ["steps", "sigmas", "timesteps"];
    let origin = node.origin;
    let (Value::Map(entries), Ok(serde_json::Value::Object(defaults))) =
        (&mut node.value, serde_json::to_value(defaults))
    else {
        return; // a prompt is a mapping
    };
    let given = |entries: &[(String, Node)], key: &str| entries.iter().any(|(name, _)| name == key);
    let has_steps = STEPS.iter().any(|key| given(entries, key));
    for (key, value) in defaults {
        let is_given = given(entries, &key) || (has_steps && STEPS.contains(&key.as_str()));
        if !is_given && key != "prompt" {
            entries.push((key, Node::from_json(value, origin)));
        }
    }
}

/// Returns the path of a clip that a prompt names.
fn output(named: &Node) -> Result<PathBuf, String> {
    let Value::String(name) = &named.value else {
        return Err("expected a text".into());
    };
    let path = PathBuf::from(name);
    let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    if !ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) {
        return Err(format!("'{name}' must end in .mp4, .webm or .gif"));
    }
    if !is_below || name.contains('\\') {
        return Err(format!(
            "'{name}' must be a path below --output, with / between folders"
        ));
    }
    Ok(path)
}
