//! Settings of a run from its `config.yaml`: the text, by key, and the values that the page needs. Keys of old runs
//! that are unknown now are shown all the same.

use serde::Serialize;
use serde_json::Value;

use crate::run_dir::RunDir;
use crate::train::validate;

/// Upper limit for the file.
const MAX_BYTES: u64 = 1 << 20;

/// Known settings of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Settings {
    /// Text of the file.
    pub text: String,
    /// Dotted keys, as in `--set`, and their values, in the file's order.
    pub keys: Vec<(String, String)>,
    #[serde(skip)]
    tree: Value,
}

/// A validation prompt, with its known settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    pub text: String,
    /// `9 frames, 96x64, 20 steps, guidance 3, seed 0`
    pub details: String,
    pub num_frames: Option<u64>,
    /// (height, width)
    pub size: Option<(u64, u64)>,
    pub fps: Option<f64>,
}

impl Settings {
    /// Reads those of a run; nothing is known where there is no file, or one that is no YAML.
    pub fn read(dir: &RunDir) -> Self {
        let path = dir.config();
        let text = match std::fs::metadata(&path) {
            Ok(found) if found.len() <= MAX_BYTES => std::fs::read(&path).unwrap_or_default(),
            _ => Vec::new(),
        };
        Self::parse(String::from_utf8_lossy(&text).into_owned())
    }

    /// Same as [`read`](Self::read), from the file's text.
    pub fn parse(text: String) -> Self {
        let tree: Value = serde_saphyr::from_str(&text).unwrap_or_default();
        let mut keys = Vec::new();
        flatten(&tree, "", &mut keys);
        Self { text, keys, tree }
    }

    /// Returns `train.steps`, if it is what ends the run.
    pub fn steps(&self) -> Option<u64> {
        let train = self.tree.get("train")?;
        match train.get("epochs") {
            None | Some(Value::Null) => train.get("steps")?.as_u64(),
            Some(_) => None,
        }
    }

    /// Returns the prompt whose videos are named `name`, such as `00-a-red-ball`.
    pub fn prompt(&self, name: &str) -> Option<Prompt> {
        let prompts = self.tree.get("validation")?.get("prompts")?.as_array()?;
        let texts = prompts
            .iter()
            .map(|prompt| prompt.get("prompt").and_then(Value::as_str));
        let (index, text) = texts
            .enumerate()
            .find_map(|(index, text)| Some((index, text?)).filter(|(_, text)| validate::name(index, text) == name))?;
        let prompt = &prompts[index];
        let whole = |key: &str| prompt.get(key).and_then(Value::as_u64);
        let number = |key: &str| prompt.get(key).and_then(Value::as_f64);
        let size = whole("height").zip(whole("width"));
        let details = [
            whole("num_frames").map(|frames| format!("{frames} frames")),
            size.map(|(height, width)| format!("{width}×{height}")),
            whole("steps").map(|steps| format!("{steps} steps")),
            number("guidance_scale").map(|scale| format!("guidance {scale}")),
            number("true_cfg_scale")
                .filter(|scale| *scale > 1.0)
                .map(|scale| format!("true CFG {scale}")),
            whole("seed").map(|seed| format!("seed {seed}")),
        ];
        Some(Prompt {
            text: text.to_string(),
            details: details.into_iter().flatten().collect::<Vec<_>>().join(" · "),
            num_frames: whole("num_frames"),
            size,
            fps: number("fps"),
        })
    }
}

/// Flattens a tree to dotted keys; lists of plain values stay on one line.
fn flatten(value: &Value, path: &str, keys: &mut Vec<(String, String)>) {
    let below = |key: &str| match path {
        "" => key.to_string(),
        path => format!("{path}.{key}"),
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| flatten(value, &below(key), keys));
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            let items = list.iter().enumerate();
            items.for_each(|(i, value)| flatten(value, &below(&i.to_string()), keys));
        }
        Value::Null if path.is_empty() => {}
        Value::String(text) => keys.push((path.into(), text.clone())),
        value => keys.push((path.into(), value.to_string())),
    }
}
