//! A YAML document as a tree with the line of each value.
//!
//! serde-saphyr parses (YAML 1.2, with budgets against hostile documents); this tree adds what a settings file needs on
//! top: `--set` overrides by dotted path, and the line of any path for messages.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{MessageFormatter, Spanned};

/// Limit for nested mappings, safe for a thread's stack and deeper than any settings.
const MAX_DEPTH: usize = 16;
const MAX_NODES: usize = 100_000;

/// A value and its origin.
#[derive(Debug, Clone)]
pub struct Node {
    /// The value itself.
    pub value: Value,
    /// Origin of the value.
    pub origin: Origin,
}

/// Origin of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In the file, at this line (from 1).
    Line(u64),
    /// In the `--set` option of this index.
    Set(usize),
}

/// YAML values.
#[derive(Debug, Clone)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer that fits 64 bits with a sign.
    Int(i64),
    /// An integer that needs all 64 bits.
    UInt(u64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    String(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the document.
    Map(Vec<(String, Node)>),
}

/// One step of a dotted path: `datasets`, then `0`, then `path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Key of a mapping.
    Key(String),
    /// Index of a list, from 0.
    Index(usize),
}

/// A syntax error: the line (from 1; 0 if unknown) and the problem.
#[derive(Debug)]
pub struct SyntaxError {
    /// Line of the document, from 1; 0 if unknown.
    pub line: u64,
    /// Description of the error.
    pub message: String,
}

impl Node {
    /// Parses one document. An empty document is an empty map.
    pub fn parse(text: &str) -> Result<Node, SyntaxError> {
        let options = serde_saphyr::options! {
            duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
            with_snippet: false,
            // A settings file is small and flat; the tree below is traversed by recursion.
            budget: serde_saphyr::budget! { max_depth: MAX_DEPTH, max_nodes: MAX_NODES, max_events: 4 * MAX_NODES },
        };
        let root: Spanned<Value> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            // The caller adds the place, once, for every kind of problem.
            let line = error.location().map_or(0, |at| at.line());
            let message = serde_saphyr::DefaultMessageFormatter.format_message(error.without_snippet());
            SyntaxError {
                line,
                message: message.escape_debug().to_string(),
            }
        })?;
        Ok(Node::from(root))
    }

    /// The same tree of a JSON value, all of it from one place.
    pub fn from_json(value: serde_json::Value, origin: Origin) -> Self {
        use serde_json::Value as Json;
        let value = match value {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Value::Int(value),
                (None, Some(value)) => Value::UInt(value),
                _ => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(value) => Value::String(value),
            Json::Array(items) => Value::List(items.into_iter().map(|item| Self::from_json(item, origin)).collect()),
            Json::Object(entries) => {
                let entries = entries.into_iter();
                Value::Map(
                    entries
                        .map(|(key, item)| (key, Self::from_json(item, origin)))
                        .collect(),
                )
            }
        };
        Self { value, origin }
    }

    /// Returns the node at `path`, or its deepest existing ancestor.
    pub fn nearest(&self, path: &[Step]) -> &Node {
        let mut node = self;
        for step in path {
            let next = match (&node.value, step) {
                (Value::Map(entries), Step::Key(key)) => entries.iter().find(|(k, _)| k == key).map(|(_, n)| n),
                (Value::List(items), Step::Index(index)) => items.get(*index),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    /// Sets `value` at `path`; missing maps are created, lists must be long enough.
    pub fn set(&mut self, path: &[Step], value: Node) -> Result<(), String> {
        let Some((step, rest)) = path.split_first() else {
            *self = value;
            return Ok(());
        };
        if matches!(self.value, Value::Null) && matches!(step, Step::Key(_)) {
            self.value = Value::Map(Vec::new());
        }
        match (&mut self.value, step) {
            (Value::Map(entries), Step::Key(key)) => {
                let at = entries.iter().position(|(k, _)| k == key).unwrap_or_else(|| {
                    entries.push((
                        key.clone(),
                        Node {
                            value: Value::Null,
                            origin: value.origin,
                        },
                    ));
                    entries.len() - 1
                });
                entries[at].1.set(rest, value)
            }
            (Value::List(items), Step::Index(index)) => {
                let len = items.len();
                match items.get_mut(*index) {
                    Some(item) => item.set(rest, value),
                    None => Err(format!("there is no item {index}, the list has {len}")),
                }
            }
            (Value::List(items), Step::Key(key)) => Err(format!(
                "'{key}' is not a position in a list of {} (from 0)",
                items.len()
            )),
            (other, _) => Err(format!("{} has nothing inside to set", other.kind())),
        }
    }

    /// Removes the nearest map entry at or above `path`. Returns the path of the removed entry.
    pub fn prune(&mut self, path: &[Step]) -> Option<Vec<Step>> {
        for end in (1..=path.len()).rev() {
            let Step::Key(key) = &path[end - 1] else {
                continue;
            };
            let parent = self.at_mut(&path[..end - 1])?;
            if let Value::Map(entries) = &mut parent.value
                && let Some(at) = entries.iter().position(|(k, _)| k == key)
            {
                entries.remove(at);
                return Some(path[..end].to_vec());
            }
        }
        None
    }

    fn at_mut(&mut self, path: &[Step]) -> Option<&mut Node> {
        path.iter().try_fold(self, |node, step| match (&mut node.value, step) {
            (Value::Map(entries), Step::Key(key)) => entries.iter_mut().find(|(k, _)| k == key).map(|(_, n)| n),
            (Value::List(items), Step::Index(index)) => items.get_mut(*index),
            _ => None,
        })
    }

    /// Returns the same tree for serde. A float that JSON cannot hold (`.nan`, `.inf`) becomes its YAML spelling, which
    /// is not accepted as a number.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(v) => (*v).into(),
            Value::Int(v) => (*v).into(),
            Value::UInt(v) => (*v).into(),
            Value::Float(v) => serde_json::Number::from_f64(*v).map_or_else(|| format!("{v}").into(), Into::into),
            Value::String(v) => v.clone().into(),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => {
                serde_json::Value::Object(entries.iter().map(|(k, n)| (k.clone(), n.to_json())).collect())
            }
        }
    }

    /// Sets the origin of every value below, as for `--set`.
    pub fn stamp(&mut self, origin: Origin) {
        self.origin = origin;
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|n| n.stamp(origin)),
            Value::Map(entries) => entries.iter_mut().for_each(|(_, n)| n.stamp(origin)),
            _ => {}
        }
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "true/false",
            Value::Int(_) | Value::UInt(_) | Value::Float(_) => "a number",
            Value::String(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Node {
            value: spanned.value,
            origin: Origin::Line(spanned.referenced.line()),
        }
    }
}

/// Parses `a.b.0.c` and `a.b[0].c`.
pub fn parse_path(text: &str) -> Result<Vec<Step>, String> {
    let mut path = Vec::new();
    for part in text.replace('[', ".").replace(']', "").split('.') {
        if part.is_empty() {
            return Err(format!(
                "'{text}' is not a dotted path such as optimizer.lr or datasets.0.path"
            ));
        }
        path.push(part.parse().map_or_else(|_| Step::Key(part.to_string()), Step::Index));
    }
    Ok(path)
}

/// Formats a path as `datasets[0].path`.
pub fn show_path(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::UInt(v))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Value>>()? {
            items.push(item.into());
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = map.next_entry::<String, Spanned<Value>>()? {
            entries.push((key, node.into()));
        }
        Ok(Value::Map(entries))
    }
}
