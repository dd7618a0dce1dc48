//! Captions to token ids: the `tokenizer/` folder of a diffusers checkpoint.
//!
//! A `tokenizer.json` is handled by the `tokenizers` crate, and CLIP's `vocab.json` and `merges.txt` ([`byte_pairs`]). With a `spiece.model` alone, as in the T5 folders of
//! CogVideoX, LTX-Video and Mochi, [`SentencePiece`] and [`SpecialTokens`] do the same as transformers' T5Tokenizer.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokenizers::{PostProcessor, TruncationDirection};

use super::byte_pairs;
use super::sentencepiece::SentencePiece;
use super::special::{Part, SideFiles, SpecialTokens};
use crate::magic;
use crate::process::panics;

/// Upper limit for a tokenizer.json; the largest published one has some 35 MB.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// Maps text to ids.
#[derive(Debug)]
pub struct TextTokenizer {
    engine: Engine,
    pad: u32,
}

#[derive(Debug)]
enum Engine {
    Pieces(SentencePiece, SpecialTokens),
    Json(Json),
}

/// A `tokenizer.json` loaded by the `tokenizers` crate.
#[derive(Debug)]
struct Json {
    path: PathBuf,
    tokenizer: Box<tokenizers::Tokenizer>,
}

/// A caption at a fixed length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Ids, `max_length` of them.
    pub ids: Vec<u32>,
    /// 1 for tokens, 0 for padding.
    pub mask: Vec<u8>,
    /// Number of the caption's tokens that did not fit.
    pub truncated: usize,
}

impl TextTokenizer {
    /// Reads the folder's `tokenizer.json`, or else its `spiece.model` or `vocab.json` and `merges.txt`, and side files.
    ///
    /// # Errors
    /// Fails without any, for a damaged file, and for a token that the vocabulary lacks.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let (json, spiece) = (folder.join("tokenizer.json"), folder.join("spiece.model"));
        if json.is_file() {
            let read = || {
                let size = std::fs::metadata(&json)?.len();
                ensure!(size <= MAX_JSON_BYTES, "{size} bytes are too many for a tokenizer");
                magic::refuse(&json)?;
                Ok(std::fs::read_to_string(&json)?)
            };
            return Self::from_json(folder, &json, read);
        }
        if spiece.is_file() {
            let model = SentencePiece::open(&spiece)?;
            let special = SpecialTokens::new(&SideFiles::read(folder)?, &model)?;
            let pad = special.pad;
            let engine = Engine::Pieces(model, special);
            return Ok(Self { engine, pad });
        }
        if byte_pairs::FILES.iter().all(|name| folder.join(name).is_file()) {
            let read = || byte_pairs::tokenizer_json(folder, &SideFiles::read(folder)?);
            return Self::from_json(folder, &folder.join(byte_pairs::FILES[0]), read);
        }
        bail!(
            "{}: no tokenizer.json and no spiece.model there, nor vocab.json with merges.txt; download the model's tokenizer \
             folder again",
            folder.display()
        )
    }

    /// Tokenizer of the JSON that `read` returns, of the file `path`.
    fn from_json(folder: &Path, path: &Path, read: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<Self> {
        let read = || {
            let text = read()?;
            check_charsmap(&text)?;
            guarded(|| tokenizers::Tokenizer::from_bytes(&text).map_err(|error| anyhow!(error)))
        };
        let mut tokenizer = read().with_context(|| format!("{}: not a usable tokenizer", path.display()))?;
        let padding = tokenizer.get_padding().map(|padding| padding.pad_id);
        let files = SideFiles::read(folder)?;
        let named = files.role("pad_token").and_then(|name| tokenizer.token_to_id(name));
        let usual = || {
            ["<pad>", "<|endoftext|>"]
                .iter()
                .find_map(|name| tokenizer.token_to_id(name))
        };
        let pad = named.or(padding).or_else(usual);
        let pad = pad.with_context(|| {
            format!(
                "{}: no padding token: neither special_tokens_map.json nor tokenizer_config.json names one that \
                 tokenizer.json has",
                folder.display()
            )
        })?;
        // Lengths are up to the caller.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| anyhow!(error))?;
        let engine = Engine::Json(Json {
            path: path.into(),
            tokenizer: Box::new(tokenizer),
        });
        Ok(Self { engine, pad })
    }

    /// Returns the id of a token of a tokenizer.json, by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.engine {
            Engine::Pieces(..) => None,
            Engine::Json(json) => json.tokenizer.token_to_id(token),
        }
    }

    /// Returns all ids of a text with the end token (and any other tokens that the model adds), without padding.
    pub fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        Ok(self.encode_within(text, usize::MAX)?.0)
    }

    /// Returns the ids of a text at exactly `max_length`: truncated before the end token, or padded after it.
    pub fn encode_padded(&self, text: &str, max_length: usize) -> anyhow::Result<Encoding> {
        let (mut ids, truncated) = self.encode_within(text, max_length)?;
        let mut mask = vec![1; ids.len()];
        ids.resize(max_length, self.pad);
        mask.resize(max_length, 0);
        Ok(Encoding { ids, mask, truncated })
    }

    /// Returns at most `max_length` ids, and the number of those left out.
    fn encode_within(&self, text: &str, max_length: usize) -> anyhow::Result<(Vec<u32>, usize)> {
        let room = |added: usize| {
            let room = max_length.checked_sub(added);
            room.with_context(|| format!("{max_length} tokens cannot hold the {added} added to every text"))
        };
        match &self.engine {
            Engine::Pieces(model, special) => {
                let room = room(1)?;
                let mut ids = Vec::new();
                for part in special.split(text) {
                    match part {
                        Part::Token(id) => ids.push(id),
                        Part::Text(text) => ids.extend(model.encode(text)),
                    }
                }
                let truncated = ids.len().saturating_sub(room);
                ids.truncate(room);
                ids.push(special.end);
                Ok((ids, truncated))
            }
            Engine::Json(json) => {
                let encoded = guarded(|| json.encode_within(text, room));
                encoded.with_context(|| json.path.display().to_string())
            }
        }
    }
}

impl Json {
    /// Same as the tokenizer's own, truncated to leave space for the added tokens.
    fn encode_within(
        &self,
        text: &str,
        room: impl Fn(usize) -> anyhow::Result<usize>,
    ) -> anyhow::Result<(Vec<u32>, usize)> {
        let tokenizer = &self.tokenizer;
        let around = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(false));
        let room = room(around)?;
        let mut encoding = tokenizer.encode(text, false).map_err(|error| anyhow!(error))?;
        let truncated = encoding.len().saturating_sub(room);
        encoding.truncate(room, 0, TruncationDirection::Right);
        let encoding = tokenizer.post_process(encoding, None, true);
        let encoding = encoding.map_err(|error| anyhow!(error))?;
        Ok((encoding.get_ids().to_vec(), truncated))
    }
}

/// The crate checks most of a file, but panics on some damaged ones.
fn guarded<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    panics::contained(work)
        .unwrap_or_else(|| Err(anyhow!("it is damaged; download the model's tokenizer folder again")))
}

/// Checks the size declared for the normalisation rules, because the crate allocates that much regardless of the file.
fn check_charsmap(json: &str) -> anyhow::Result<()> {
    for (at, key) in json.match_indices("\"precompiled_charsmap\"") {
        let value = json[at + key.len()..].trim_start_matches([' ', '\t', '\r', '\n', ':']);
        let value = value.strip_prefix('"').unwrap_or_default();
        let value = &value[..value.find('"').unwrap_or(value.len())];
        let head = value.get(..8).and_then(|head| BASE64_STANDARD.decode(head).ok());
        if let Some([a, b, c, d, ..]) = head.as_deref() {
            let size = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            ensure!(
                size <= value.len(),
                "precompiled_charsmap declares a trie of {size} bytes, but is shorter"
            );
        }
    }
    Ok(())
}
