//! Special tokens that appear in the text itself, such as `</s>` and `<extra_id_0>`, and the files that list them.
//!
//! A `spiece.model` may come with three more files: `added_tokens.json` (name to id), `special_tokens_map.json` (role
//! to name), `tokenizer_config.json` (both, in its `added_tokens_decoder` and roles). Their tokens are split off before
//! the model sees the text, as in transformers' T5Tokenizer; the model then treats each part between as a separate
//! text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};

use super::sentencepiece::SentencePiece;

/// Upper limit for a side file: a few kB, or about 1 MB with every reserved token of a large vocabulary.
const MAX_SIDE_FILE_BYTES: u64 = 16 << 20;

/// Number of T5's sentinels if the files do not give it.
const DEFAULT_EXTRA_IDS: u64 = 100;

/// Upper limit for sentinels, more than any model has.
const MAX_EXTRA_IDS: u64 = 10_000;

/// Roles whose tokens are split off.
const ROLES: [&str; 7] = [
    "eos_token",
    "pad_token",
    "unk_token",
    "bos_token",
    "sep_token",
    "cls_token",
    "mask_token",
];

/// A token that is split off.
#[derive(Debug, Clone, Default)]
struct Special {
    content: String,
    id: u32,
    /// True to strip the whitespace before it, or after it.
    lstrip: bool,
    rstrip: bool,
    /// True to match only where no letter or digit is adjacent.
    single_word: bool,
}

/// Special tokens of a tokenizer.
#[derive(Debug)]
pub struct SpecialTokens {
    /// Tokens, longest first, so that the longer one wins if one is a prefix of another.
    tokens: Vec<Special>,
    /// Id of the end token.
    pub end: u32,
    /// Id of the padding token.
    pub pad: u32,
}

/// A part of a text: plain, or a special token.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Text between special tokens.
    Text(&'a str),
    /// Id of a special token.
    Token(u32),
}

/// Side files of a tokenizer, empty if missing.
#[derive(Debug)]
pub struct SideFiles {
    folder: PathBuf,
    added: Map<String, Value>,
    map: Map<String, Value>,
    config: Map<String, Value>,
}

impl SideFiles {
    /// Reads the existing side files of a tokenizer's folder.
    ///
    /// # Errors
    /// Fails for a file that cannot be read or is not a JSON object.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let files = Self {
            folder: folder.to_path_buf(),
            added: object(&folder.join("added_tokens.json"))?,
            map: object(&folder.join("special_tokens_map.json"))?,
            config: object(&folder.join("tokenizer_config.json"))?,
        };
        for side in ["padding_side", "truncation_side"] {
            let value = files.config.get(side).and_then(Value::as_str).unwrap_or("right");
            ensure!(
                value == "right",
                "{}: {side} is {value}; only right is supported",
                folder.join("tokenizer_config.json").display()
            );
        }
        Ok(files)
    }

    /// Returns the token of a role, such as `pad_token`.
    pub fn role(&self, role: &str) -> Option<&str> {
        let files = [&self.map, &self.config];
        files.into_iter().find_map(|file| content(file.get(role)?))
    }

    /// Returns every token for which the files give an id, flags or a role.
    fn tokens(&self) -> anyhow::Result<BTreeMap<String, (Option<u32>, Special)>> {
        let mut tokens: BTreeMap<String, (Option<u32>, Special)> = BTreeMap::new();
        let decoder = self.config.get("added_tokens_decoder").and_then(Value::as_object);
        for (id, value) in decoder.into_iter().flatten() {
            let id = id.parse::<u32>().ok().map(Value::from);
            let name = content(value).filter(|name| !name.is_empty());
            let (Some(id), Some(name)) = (id, name) else {
                bail!("tokenizer_config.json: added_tokens_decoder: each needs a number and a content, unlike {value}");
            };
            note(&mut tokens, name, Some(&id), value).context("tokenizer_config.json")?;
        }
        for (name, id) in &self.added {
            note(&mut tokens, name, Some(id), &Value::Null).context("added_tokens.json")?;
        }
        let files = [
            (&self.map, "special_tokens_map.json"),
            (&self.config, "tokenizer_config.json"),
        ];
        for (file, name) in files {
            let roles = ROLES.iter().filter_map(|role| file.get(*role));
            let additional = file.get("additional_special_tokens").and_then(Value::as_array);
            for value in roles.chain(additional.into_iter().flatten()) {
                if let Some(content) = content(value) {
                    note(&mut tokens, content, None, value).context(name)?;
                }
            }
        }
        Ok(tokens)
    }

    fn extra_ids(&self) -> u64 {
        self.config
            .get("extra_ids")
            .and_then(Value::as_u64)
            .unwrap_or(DEFAULT_EXTRA_IDS)
    }
}

impl SpecialTokens {
    /// Special tokens of `model`, according to its side files.
    pub fn new(files: &SideFiles, model: &SentencePiece) -> anyhow::Result<Self> {
        Self::collect(files, model).with_context(|| files.folder.display().to_string())
    }

    fn collect(files: &SideFiles, model: &SentencePiece) -> anyhow::Result<Self> {
        let mut named = files.tokens()?;
        for name in ["</s>", "<pad>", "<unk>"] {
            // T5's default if the files do not list them.
            if model.id(name).is_some() {
                named.entry(name.to_string()).or_default();
            }
        }
        let sentinels_have_ids = named
            .iter()
            .any(|(name, (id, _))| name.starts_with("<extra_id_") && id.is_some());
        if !sentinels_have_ids && model.id("<extra_id_0>").is_none() {
            let count = files.extra_ids();
            ensure!(
                count <= MAX_EXTRA_IDS,
                "tokenizer_config.json: {count} extra_ids are too many"
            );
            for i in 0..count {
                // <extra_id_0> has the highest id.
                let id = model.len() as u64 + count - 1 - i;
                named.entry(format!("<extra_id_{i}>")).or_default().0 = Some(u32::try_from(id)?);
            }
        }
        let mut tokens = Vec::new();
        for (content, (id, flags)) in named {
            let id = id.or_else(|| model.id(&content));
            let id = id.with_context(|| format!("the special token {content} has no id: no file gives it one"))?;
            tokens.push(Special { content, id, ..flags });
        }
        tokens.sort_by_key(|token| std::cmp::Reverse(token.content.len()));
        let id = |role: &str, default: &str| {
            let name = files.role(role).unwrap_or(default);
            let found = tokens.iter().find(|token| token.content == name).map(|token| token.id);
            found.with_context(|| format!("the {role} {name} is not in the vocabulary"))
        };
        let (end, pad) = (id("eos_token", "</s>")?, id("pad_token", "<pad>")?);
        Ok(Self { tokens, end, pad })
    }

    /// Splits a text at its special tokens.
    pub fn split<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        let (mut start, mut at) = (0, 0); // start of the current part, and current position
        while let Some(character) = text[at..].chars().next() {
            let Some(token) = self.tokens.iter().find(|token| text[at..].starts_with(&token.content)) else {
                at += character.len_utf8();
                continue;
            };
            let (before, behind) = (&text[start..at], &text[at + token.content.len()..]);
            at = text.len() - behind.len();
            let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            if token.single_word && (word(before.chars().next_back()) || word(behind.chars().next())) {
                continue;
            }
            let before = if token.lstrip { before.trim_end() } else { before };
            if !before.is_empty() {
                parts.push(Part::Text(before));
            }
            parts.push(Part::Token(token.id));
            if token.rstrip {
                at = text.len() - behind.trim_start().len();
            }
            start = at;
        }
        if start < text.len() {
            parts.push(Part::Text(&text[start..]));
        }
        parts
    }
}

/// Merges what several files state about a token.
fn note(
    tokens: &mut BTreeMap<String, (Option<u32>, Special)>,
    name: &str,
    id: Option<&Value>,
    flags: &Value,
) -> anyhow::Result<()> {
    ensure!(!name.is_empty(), "a special token has no name");
    let (known, special) = tokens.entry(name.to_string()).or_default();
    let flag = |key: &str| flags.get(key).and_then(Value::as_bool).unwrap_or(false);
    special.lstrip |= flag("lstrip");
    special.rstrip |= flag("rstrip");
    special.single_word |= flag("single_word");
    if let Some(id) = id {
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let number = number.with_context(|| format!("the id of {name} is {id}, which is not a valid id"))?;
        if let Some(other) = known.replace(number) {
            ensure!(
                other == number,
                "{name} has the id {number} here and {other} in another file"
            );
        }
    }
    Ok(())
}

/// Returns the content of a token, written as a string, or as an object with its `content`.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Reads the JSON object in a file; empty if there is no such file.
fn object(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let read = || {
        let size = std::fs::metadata(path)?.len();
        ensure!(size <= MAX_SIDE_FILE_BYTES, "{size} bytes are too many for this file");
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    };
    if !path.exists() {
        return Ok(Map::new());
    }
    read().with_context(|| format!("{}: not a JSON object", path.display()))
}
