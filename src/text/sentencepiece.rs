//! A unigram SentencePiece model (`spiece.model`): maps text to the same ids as `SentencePieceProcessor.encode`.
//!
//! arXiv:1808.06226 (SentencePiece), arXiv:1804.10959 (the unigram model). Three steps, each in a file of its own:
//! [`crate::protobuf_wire`] reads the protobuf, `normalize` rewrites the text, `unigram` segments it into the likeliest
//! pieces.
//!
//! The `tokenizers` crate is not used for these files, because its ids differ: it looks up normalisation rules by whole
//! grapheme and applies the first that matches a part of it, so that combining marks after a full-width letter or an
//! emoji vanish (2 % of random lines of such characters); it matches control pieces in the text; and it sums scores in
//! f64, where SentencePiece keeps f32.

mod normalize;
mod unigram;

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use crate::magic;
use crate::protobuf_wire::{Field, Message, Value};
use normalize::{Normalizer, Spaces};
use unigram::Unigram;

/// Upper limit for a model file; the largest published one (mT5's) has 4 MB.
const MAX_MODEL_BYTES: u64 = 32 << 20;

/// Kinds of pieces; the numbers are those of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    /// Never matched in text: `</s>`, `<pad>`.
    Control,
    /// Always matched, even before normalisation.
    UserDefined,
    Unused,
    /// `<0x41>`: one byte of a character that no piece covers.
    Byte,
}

/// One entry of the vocabulary; its name is a span of the file.
#[derive(Debug, Clone)]
struct Piece {
    name: Range<usize>,
    score: f32,
    kind: Kind,
}

/// A loaded model.
#[derive(Debug)]
pub struct SentencePiece {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    normalizer: Normalizer,
    unigram: Unigram,
    /// Ids of the 256 byte pieces, if characters without a piece become bytes.
    byte_pieces: Option<Vec<u32>>,
}

/// Contents of the file.
#[derive(Default)]
struct Parts {
    pieces: Vec<Piece>,
    charsmap: Range<usize>,
    byte_fallback: bool,
    spaces: Spaces,
}

impl SentencePiece {
    /// Reads a `spiece.model`.
    ///
    /// # Errors
    /// Fails for files that are not a SentencePiece model, not a unigram one, or damaged; names the file and the
    /// problem.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let read = || {
            let size = std::fs::metadata(path)?.len();
            ensure!(
                size <= MAX_MODEL_BYTES,
                "{size} bytes are too many for a tokenizer; this is another file"
            );
            magic::refuse(path)?;
            Self::parse(std::fs::read(path)?)
        };
        read().with_context(|| format!("{}: not a usable SentencePiece model", path.display()))
    }

    fn parse(bytes: Vec<u8>) -> anyhow::Result<Self> {
        let parts = Parts::read(&bytes)?;
        let normalizer = Normalizer::new(&bytes[parts.charsmap.clone()], parts.spaces)?;
        let unigram = Unigram::new(&bytes, &parts.pieces)?;
        let byte_pieces = byte_pieces(&bytes, &parts)?;
        Ok(Self {
            bytes,
            pieces: parts.pieces,
            normalizer,
            unigram,
            byte_pieces,
        })
    }

    /// Returns the ids of a text, without any end token.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let user_defined = |rest: &[u8]| self.unigram.user_defined_prefix(&self.bytes, &self.pieces, rest);
        let text = self.normalizer.normalize(text, user_defined);
        let mut ids = Vec::new();
        let mut after_unknown = false;
        for cut in self.unigram.cut(&self.bytes, &self.pieces, &text) {
            let unknown = cut.id == self.unigram.unknown();
            match &self.byte_pieces {
                Some(pieces) if unknown => {
                    ids.extend(text.as_bytes()[cut.span].iter().map(|byte| pieces[*byte as usize]));
                }
                // Adjacent unknown characters form one unknown piece.
                _ if unknown && after_unknown => {}
                _ => ids.push(cut.id),
            }
            after_unknown = unknown;
        }
        ids
    }

    /// Returns the number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Returns true without pieces, which an opened model never is.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Returns the id of the piece of this name, of any kind.
    pub fn id(&self, name: &str) -> Option<u32> {
        let found = |piece: &Piece| &self.bytes[piece.name.clone()] == name.as_bytes();
        Some(self.pieces.iter().position(found)? as u32) // the file's size bounds it
    }
}

impl Parts {
    /// `ModelProto`: pieces = 1, trainer_spec = 2, normalizer_spec = 3.
    fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut parts = Self::default();
        let mut model_type = 1;
        for field in Message::new(bytes, 0..bytes.len()) {
            let field = field?;
            match (field.number, &field.value) {
                (1, Value::Bytes(span)) => {
                    let number = parts.pieces.len();
                    let piece = Piece::read(bytes, span.clone()).with_context(|| format!("piece {number}"))?;
                    parts.pieces.push(piece);
                }
                (2, Value::Bytes(span)) => {
                    model_type = parts
                        .read_trainer(bytes, span.clone(), model_type)
                        .context("trainer_spec")?;
                }
                (3, Value::Bytes(span)) => parts.read_normalizer(bytes, span.clone()).context("normalizer_spec")?,
                (1..=3, _) => bail!("field {} is not a message", field.number),
                _ => {}
            }
        }
        ensure!(!parts.pieces.is_empty(), "it has no pieces");
        ensure!(
            model_type == 1,
            "its kind is {}, and only unigram models are read; a repository of this kind needs a tokenizer.json",
            match model_type {
                2 => "BPE".to_string(),
                3 => "word".to_string(),
                4 => "character".to_string(),
                other => format!("number {other}"),
            }
        );
        Ok(parts)
    }

    /// `TrainerSpec`: model_type = 3, treat_whitespace_as_suffix = 24, byte_fallback = 35.
    fn read_trainer(&mut self, bytes: &[u8], span: Range<usize>, mut model_type: u64) -> anyhow::Result<u64> {
        for field in Message::new(bytes, span) {
            let field = field?;
            match field.number {
                3 => model_type = field.integer()?,
                24 => self.spaces.as_suffix = field.integer()? != 0,
                35 => self.byte_fallback = field.integer()? != 0,
                _ => {}
            }
        }
        Ok(model_type)
    }

    /// `NormalizerSpec`: precompiled_charsmap = 2, add_dummy_prefix = 3, remove_extra_whitespaces = 4,
    /// escape_whitespaces = 5.
    fn read_normalizer(&mut self, bytes: &[u8], span: Range<usize>) -> anyhow::Result<()> {
        for field in Message::new(bytes, span) {
            let field = field?;
            match field.number {
                2 => self.charsmap = field.bytes()?,
                3 => self.spaces.add_dummy_prefix = field.integer()? != 0,
                4 => self.spaces.remove_extra_whitespaces = field.integer()? != 0,
                5 => self.spaces.escape_whitespaces = field.integer()? != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Piece {
    /// `SentencePiece`: piece = 1, score = 2, type = 3.
    fn read(bytes: &[u8], span: Range<usize>) -> anyhow::Result<Self> {
        let mut piece = Self {
            name: 0..0,
            score: 0.0,
            kind: Kind::Normal,
        };
        for field in Message::new(bytes, span) {
            let field = field?;
            match field.number {
                1 => piece.name = field.bytes()?,
                2 => piece.score = field.float()?,
                3 => piece.kind = Kind::read(&field)?,
                _ => {}
            }
        }
        ensure!(!piece.name.is_empty(), "it has no name");
        ensure!(
            std::str::from_utf8(&bytes[piece.name.clone()]).is_ok(),
            "its name is not UTF-8"
        );
        ensure!(piece.score.is_finite(), "its score is {}", piece.score);
        Ok(piece)
    }
}

impl Kind {
    fn read(field: &Field) -> anyhow::Result<Self> {
        Ok(match field.integer()? {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            other => bail!("its type is {other}, and types go from 1 to 6"),
        })
    }
}

/// Returns the ids of the 256 byte pieces, if the model falls back on them.
fn byte_pieces(bytes: &[u8], parts: &Parts) -> anyhow::Result<Option<Vec<u32>>> {
    let mut ids = vec![None; 256];
    for (id, piece) in parts.pieces.iter().enumerate() {
        if piece.kind != Kind::Byte {
            continue;
        }
        let name = String::from_utf8_lossy(&bytes[piece.name.clone()]);
        ensure!(
            parts.byte_fallback,
            "the byte piece {name} has no use without byte_fallback"
        );
        let byte = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        let byte = byte
            .filter(|hex| hex.len() == 2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let byte = byte.with_context(|| format!("the byte piece {name} names no byte"))?;
        ids[usize::from(byte)] = Some(id as u32); // the file's size bounds it
    }
    if !parts.byte_fallback {
        return Ok(None);
    }
    let ids: Option<Vec<u32>> = ids.into_iter().collect();
    Ok(Some(
        ids.context("byte_fallback is on, but not every byte has its piece")?,
    ))
}
