//! Configs of diffusers' classes, `config.json` and `scheduler_config.json`: with a limit on their size, unknown keys
//! rejected, and errors by key.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;
use std::slice;

use anyhow::{Context, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::magic;

/// Upper limit for a config.json.
const MAX_BYTES: u64 = 1 << 20;

/// Keys that diffusers writes into every config, and no computation reads; `quantization_config` is read with the weights.
const WITHOUT_EFFECT: [&str; 3] = ["_diffusers_version", "_name_or_path", "quantization_config"];

/// Range of plausible sizes.
pub const SIZE: RangeInclusive<usize> = 1..=1 << 24;

/// Settings of a diffusers class, by its keys; an unknown key might change the computation, so implementors reject it
/// (`deny_unknown_fields`).
pub trait Config: Serialize + DeserializeOwned {
    /// `_class_name`, which is not a field.
    const CLASS: &'static str;

    /// Keys of the class that no computation here reads.
    const UNUSED: &'static [&'static str] = &[];

    /// Keys with the one supported value, as JSON, and the reason. It is their default as well, so they are no fields.
    const FIXED: &'static [(&'static str, &'static str, &'static str)] = &[];

    /// Returns values that parse but cannot be computed with: [`Rules`].
    fn check(&self) -> Vec<String>;

    /// Reads and checks `config.json` in `folder`.
    ///
    /// # Errors
    /// Names the file and key: a missing file, another class's, an unknown key, or inconsistent values.
    fn load(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("config.json");
        text(&path)
            .and_then(|text| Self::parse(&text))
            .with_context(|| path.display().to_string())
    }

    /// Same as [`load`](Self::load), from the file's text.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut keys = keys(text)?;
        if let Some(class) = keys.remove("_class_name").filter(|class| !class.is_null()) {
            ensure!(
                class == Self::CLASS,
                "_class_name must be {}, found {class}",
                Self::CLASS
            );
        }
        Self::from_keys(keys)
    }

    /// Same as [`parse`](Self::parse), from keys without `_class_name`.
    fn from_keys(mut keys: Map<String, Value>) -> anyhow::Result<Self> {
        keys.retain(|key, _| !WITHOUT_EFFECT.contains(&key.as_str()) && !Self::UNUSED.contains(&key.as_str()));
        let mut wrong = Vec::new();
        for (key, value, why) in Self::FIXED {
            let found = keys.remove(*key);
            if let Some(found) = found.filter(|found| !is(found, value)) {
                wrong.push(must_be(key, format!("{value}, {why}"), &found));
            }
        }
        let config: Self = serde_path_to_error::deserialize(Value::Object(keys))?;
        wrong.extend(config.check());
        ensure!(wrong.is_empty(), wrong.join("\n"));
        Ok(config)
    }
}

/// Checks that a value is the one written as JSON; numbers are compared by value.
fn is(found: &Value, json: &str) -> bool {
    let wanted: Value = serde_json::from_str(json).unwrap_or_default();
    match (found.as_f64(), wanted.as_f64()) {
        (Some(found), Some(wanted)) => found == wanted,
        _ => *found == wanted,
    }
}

/// Parses the settings of one of transformers' classes, without the keys that have no effect on what is computed here; an
/// unknown key might, so `T` rejects it.
///
/// # Errors
/// Names the key.
pub fn of_transformers<T: DeserializeOwned>(text: &str, without_effect: &[&str]) -> anyhow::Result<T> {
    let mut keys = keys(text)?;
    keys.retain(|key, _| !without_effect.contains(&key.as_str()));
    Ok(serde_path_to_error::deserialize(Value::Object(keys))?)
}

/// Returns the keys of any config.
pub fn keys(text: &str) -> anyhow::Result<Map<String, Value>> {
    serde_json::from_str(text).context("not a JSON object")
}

/// Returns the text of any config, unless it is too large to be one.
pub fn text(path: &Path) -> anyhow::Result<String> {
    let size = std::fs::metadata(path)?.len();
    ensure!(size <= MAX_BYTES, "{size} bytes are too many for a config");
    magic::refuse(path)?;
    Ok(std::fs::read_to_string(path)?)
}

/// Collects the rules that a config breaks, as messages that begin with the key. Values are looked up by key in the
/// JSON: a number counts as one value, a list as each of its entries, null as none.
pub struct Rules {
    found: Value,
    wrong: Vec<String>,
}

impl Rules {
    /// Rules for the keys of a config.
    pub fn of(config: &impl Serialize) -> Self {
        Self {
            found: serde_json::to_value(config).unwrap_or_default(),
            wrong: Vec::new(),
        }
    }

    /// Requires integers within bounds.
    pub fn between(self, keys: &[&str], bounds: RangeInclusive<usize>) -> Self {
        let within = |number: f64| *bounds.start() as f64 <= number && number <= *bounds.end() as f64;
        self.each(
            keys,
            within,
            &format!("lie between {} and {}", bounds.start(), bounds.end()),
        )
    }

    /// Requires integers above 0.
    pub fn above_zero(self, keys: &[&str]) -> Self {
        self.each(keys, |number| number > 0.0, "be a number above 0")
    }

    /// Requires the only supported value.
    pub fn only(mut self, key: &str, value: impl Into<Value>, why: &str) -> Self {
        let value = value.into();
        let holds = *self.value(key) == value;
        self.must(key, holds, format!("{value}, {why}"))
    }

    /// Requires this number, where one is given.
    pub fn given(mut self, key: &str, number: usize, why: &str) -> Self {
        let found = self.value(key);
        let holds = found.is_null() || found.as_u64() == Some(number as u64);
        self.must(key, holds, format!("{number}, {why}"))
    }

    /// Requires lists of this length.
    pub fn length(mut self, keys: &[&str], count: usize) -> Self {
        for key in keys {
            let found = self.value(key).as_array().map_or(0, Vec::len);
            if found != count {
                self.wrong
                    .push(format!("{key} must have {count} entries, found {found}"));
            }
        }
        self
    }

    /// Requires any other condition: "key must be ..., found ...".
    pub fn must(mut self, key: &str, holds: bool, be: impl Display) -> Self {
        if !holds {
            let message = must_be(key, be, self.value(key));
            self.wrong.push(message);
        }
        self
    }

    /// Requires a condition with a longer message.
    pub fn holds(mut self, holds: bool, message: impl FnOnce() -> String) -> Self {
        if !holds {
            self.wrong.push(message());
        }
        self
    }

    /// Collects the problems of some items.
    pub fn all<T>(mut self, items: &[T], wrong: impl Fn(&T) -> Option<String>) -> Self {
        self.wrong.extend(items.iter().filter_map(wrong));
        self
    }

    /// Checks further rules only if none is broken so far.
    pub fn then(mut self, more: impl FnOnce() -> Vec<String>) -> Self {
        if self.wrong.is_empty() {
            self.wrong = more();
        }
        self
    }

    /// Returns the broken rules, a sentence each.
    pub fn wrong(self) -> Vec<String> {
        self.wrong
    }

    fn each(mut self, keys: &[&str], right: impl Fn(f64) -> bool, must: &str) -> Self {
        for key in keys {
            let value = self.value(key).clone();
            let entries = match &value {
                Value::Null => &[],
                Value::Array(entries) => &entries[..],
                one => slice::from_ref(one),
            };
            if let Some(found) = entries.iter().find(|entry| !entry.as_f64().is_some_and(&right)) {
                self.wrong.push(format!("{key} must {must}, found {found}"));
            }
        }
        self
    }

    /// Returns the value of a key. An unknown key is a mistake in the rules, and breaks every config.
    fn value(&mut self, key: &str) -> &Value {
        if self.found.get(key).is_none() {
            self.wrong.push(format!("{key} is not a key of this config"));
        }
        &self.found[key]
    }
}

fn must_be(key: &str, be: impl Display, found: &Value) -> String {
    match found {
        Value::String(found) => format!("{key} must be {be}, found {found}"),
        found => format!("{key} must be {be}, found {found}"),
    }
}
