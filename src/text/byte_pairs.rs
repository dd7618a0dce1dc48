//! CLIP's tokenizer from `vocab.json` and `merges.txt`, where a folder has no tokenizer.json: the same as transformers'
//! CLIPTokenizer.
//!
//! Lower case, NFC; words, single digits and runs of other signs; bytes of each merged pair by pair, the last one marked
//! `</w>`; a start token before, an end token behind. It becomes the JSON of the `tokenizers` crate.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use super::special::SideFiles;

/// Files of a vocabulary.
pub const FILES: [&str; 2] = ["vocab.json", "merges.txt"];

/// Upper limit for each; CLIP's have 1 MB.
const MAX_BYTES: u64 = 64 << 20;

/// Roles of special tokens, and CLIP's names of them.
const ROLES: [(&str, &str); 3] = [
    ("bos_token", "<|startoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
];

/// Words that pairs are merged within.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Returns the tokenizer.json of the vocabulary in `folder`.
///
/// # Errors
/// Fails for files that cannot be read, are no vocabulary, or lack a special token.
pub fn tokenizer_json(folder: &Path, files: &SideFiles) -> anyhow::Result<String> {
    let [vocab, merges] = FILES.map(|name| folder.join(name));
    let vocab: Map<String, Value> = text(&vocab)
        .and_then(|text| Ok(serde_json::from_str(&text)?))
        .with_context(|| format!("{}: not a vocabulary", vocab.display()))?;
    let lines = text(&merges).with_context(|| merges.display().to_string())?;
    let mut pairs = Vec::new();
    for (i, line) in lines.lines().enumerate() {
        if line.is_empty() || (i == 0 && line.starts_with("#version")) {
            continue;
        }
        let pair: Vec<&str> = line.split(' ').collect();
        ensure!(
            pair.len() == 2,
            "{}: line {}: {line:?} is no pair; download the model's tokenizer folder again",
            merges.display(),
            i + 1
        );
        pairs.push(pair);
    }
    let special = ROLES.map(|(role, usual)| files.role(role).unwrap_or(usual));
    let id = |token: &str| {
        let id = vocab.get(token).and_then(Value::as_u64);
        id.with_context(|| format!("{}: {}: has no {token}", folder.display(), FILES[0]))
    };
    let [start, end, unknown] = special;
    let ids = [(start, id(start)?), (end, id(end)?)];
    id(unknown)?;
    let added = |(token, id): (&str, u64)| {
        json!({
            "id": id, "content": token, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": ids.map(added),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {
            "type": "RobertaProcessing", "sep": [end, ids[1].1], "cls": [start, ids[0].1],
            "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": null,
        "model": {
            "type": "BPE", "unk_token": unknown, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
            "fuse_unk": false, "vocab": vocab, "merges": pairs,
        },
    })
    .to_string())
}

fn text(path: &Path) -> anyhow::Result<String> {
    let size = std::fs::metadata(path)?.len();
    ensure!(size <= MAX_BYTES, "{size} bytes are too many for a vocabulary");
    Ok(std::fs::read_to_string(path)?)
}
