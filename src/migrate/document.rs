//! A run file under construction: keys in the order of [`RunConfig`](crate::config::RunConfig), each with its origin.
//!
//! Scalars and lists of scalars are JSON, which is YAML as well; mappings are indented blocks, so that every key has a
//! line for its comment.

use serde_json::Value;

/// Order of a run file's sections.
const ORDER: &[&str] = &[
    "output_dir",
    "seed",
    "device",
    "model",
    "datasets",
    "precompute",
    "lora",
    "train",
    "diffusion",
    "optimizer",
    "lr_scheduler",
    "checkpoint",
    "validation",
    "tracking",
];

/// A mapping whose keys have comments on their origin.
#[derive(Debug, Default)]
pub struct Block(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    key: String,
    content: Content,
    from: String,
}

#[derive(Debug)]
enum Content {
    Plain(Value),
    Block(Block),
    List(Vec<Block>),
}

impl Block {
    /// Sets `key`, replacing its value; `from` is the comment after it.
    pub fn set(&mut self, key: &str, value: impl Into<Value>, from: &str) {
        self.put(key, Content::Plain(value.into()), from);
    }

    /// Returns the integer at `section.key`.
    pub fn number(&self, section: &str, key: &str) -> Option<u64> {
        let find = |block: &Block, key: &str| block.0.iter().position(|entry| entry.key == key);
        let Content::Block(section) = &self.0[find(self, section)?].content else {
            return None;
        };
        match &section.0[find(section, key)?].content {
            Content::Plain(value) => value.as_u64(),
            _ => None,
        }
    }

    /// Sets `key` to a list of mappings.
    pub fn list(&mut self, key: &str, items: Vec<Block>, from: &str) {
        self.put(key, Content::List(items), from);
    }

    /// Returns the mapping at `key`, empty if there was none.
    pub fn block(&mut self, key: &str) -> &mut Block {
        let at = self.0.iter().position(|entry| entry.key == key).unwrap_or_else(|| {
            self.put(key, Content::Block(Block::default()), "");
            self.0.len() - 1
        });
        let entry = &mut self.0[at];
        if !matches!(entry.content, Content::Block(_)) {
            entry.content = Content::Block(Block::default());
        }
        match &mut entry.content {
            Content::Block(block) => block,
            _ => unreachable!("made a block above"),
        }
    }

    fn put(&mut self, key: &str, content: Content, from: &str) {
        let from = from.to_string();
        match self.0.iter_mut().find(|entry| entry.key == key) {
            Some(entry) => (entry.content, entry.from) = (content, from),
            None => self.0.push(Entry {
                key: key.to_string(),
                content,
                from,
            }),
        }
    }

    /// Calls `see` with every text among the values, and its key's path.
    fn texts(&self, path: &str, see: &mut impl FnMut(&str, &str)) {
        for Entry { key, content, .. } in &self.0 {
            let path = match path {
                "" => key.clone(),
                path => format!("{path}.{key}"),
            };
            match content {
                Content::Plain(Value::String(text)) => see(&path, text),
                Content::Plain(Value::Array(items)) => {
                    items.iter().filter_map(Value::as_str).for_each(|text| see(&path, text))
                }
                Content::Plain(_) => {}
                Content::Block(block) => block.texts(&path, see),
                Content::List(blocks) => {
                    for (n, block) in blocks.iter().enumerate() {
                        block.texts(&format!("{path}[{n}]"), see);
                    }
                }
            }
        }
    }

    fn write(&self, depth: usize, out: &mut String) {
        for entry in &self.0 {
            let indent = "  ".repeat(depth);
            let comment = match &entry.from[..] {
                "" => String::new(),
                from => format!("  # {}", one_line(from)),
            };
            match &entry.content {
                Content::Plain(value) => {
                    out.push_str(&format!("{indent}{}: {}{comment}\n", entry.key, scalar(value)));
                }
                Content::Block(block) if block.0.is_empty() => {}
                Content::Block(block) => {
                    out.push_str(&format!("{indent}{}:{comment}\n", entry.key));
                    block.write(depth + 1, out);
                }
                Content::List(items) if items.is_empty() => {
                    out.push_str(&format!("{indent}{}: []{comment}\n", entry.key))
                }
                Content::List(items) => {
                    out.push_str(&format!("{indent}{}:{comment}\n", entry.key));
                    for item in items {
                        let mut text = String::new();
                        item.write(depth + 2, &mut text);
                        // The first key follows the dash.
                        let text = text.trim_start();
                        let text = if text.is_empty() { "{}\n" } else { text };
                        out.push_str(&format!("{indent}  - {text}"));
                    }
                }
            }
        }
    }
}

/// A setting without a key, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Flag or setting.
    pub what: String,
    /// Reason why it has no key.
    pub why: String,
}

/// A run file, with the settings that could not become part of it.
#[derive(Debug, Default)]
pub struct Document {
    /// Keys of the run file.
    pub root: Block,
    /// Settings without a key.
    pub remarks: Vec<Remark>,
    /// Texts of the script whose values only running it would reveal.
    pub unread: Vec<String>,
}

impl Document {
    /// Records a setting without a key.
    pub fn remark(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.remarks.push(Remark {
            what: what.into(),
            why: why.into(),
        });
    }

    /// Returns the keys whose value is unusable here, each with advice.
    pub fn unfit(&self) -> Vec<String> {
        let mut unfit = Vec::new();
        self.root.texts("", &mut |path, text| {
            let prompt = path.ends_with("prompt");
            if let Some(left) = self.unread.iter().find(|left| text.contains(left.as_str())) {
                let left = left.escape_debug();
                unfit.push(format!(
                    "{path}: {left} is copied from the script, which is not run: write its value"
                ));
            } else if !prompt && is_on_a_drive(text) {
                let text = text.escape_debug();
                unfit.push(format!(
                    "{path}: {text} is a path of Windows: write where it is on this machine"
                ));
            }
        });
        unfit
    }

    /// Formats the file's text below these comment lines.
    pub fn to_yaml(&mut self, head: &[String]) -> String {
        let place = |entry: &Entry| ORDER.iter().position(|key| *key == entry.key);
        self.root.0.sort_by_key(place);
        let mut out = String::new();
        for line in head {
            out.push_str(&format!("# {}\n", one_line(line)));
        }
        self.root.write(0, &mut out);
        if !self.remarks.is_empty() {
            out.push_str("\n# Without a key of their own:\n");
        }
        for remark in &self.remarks {
            out.push_str(&format!("#   {}: {}\n", one_line(&remark.what), one_line(&remark.why)));
        }
        out
    }
}

/// Checks for `D:\models`, `D:/models`
pub fn is_on_a_drive(path: &str) -> bool {
    matches!(path.as_bytes(), [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic())
}

/// Formats JSON, escaping everything that YAML does not allow in a text.
fn scalar(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') {
            text.push_str(&format!("\\u{:04x}", c as u32));
        } else {
            text.push(c);
            // As in [49, 480, 720]
            if c == ',' && !value.is_string() && is_numbers(value) {
                text.push(' ');
            }
        }
    }
    text
}

/// Checks for a list of numbers and such lists only: its commas are not part of a text.
fn is_numbers(value: &Value) -> bool {
    match value {
        Value::Number(_) => true,
        Value::Array(items) => items.iter().all(is_numbers),
        _ => false,
    }
}

/// Escapes text so that it can neither end a comment nor control the terminal that shows it.
fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c {
            '\n' | '\r' | '\t' | '\u{85}' | '\u{2028}' | '\u{2029}' => vec![' '],
            c if c.is_control() || matches!(c, '\u{feff}' | '\u{fffe}' | '\u{ffff}') => c.escape_unicode().collect(),
            c => vec![c],
        })
        .collect()
}
