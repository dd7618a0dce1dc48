//! The likeliest segmentation of a text: Viterbi over log-probabilities, one pass over the characters.
//!
//! It equals `sentencepiece::unigram::Model::EncodeOptimized`, down to the rounding: scores are summed in f32 from the
//! start of the text, and the first of equal scores wins.

use std::ops::Range;

use anyhow::{Context, ensure};

use super::{Kind, Piece};

/// Penalty of a character that no piece covers, relative to the unlikeliest piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// Vocabulary, sorted by the pieces' bytes.
#[derive(Debug)]
pub struct Unigram {
    sorted: Vec<u32>,
    unknown: u32,
    min_score: f32,
    max_score: f32,
    any_user_defined: bool,
}

/// One piece of a text.
#[derive(Debug, Clone)]
pub struct Cut {
    pub id: u32,
    pub span: Range<usize>,
}

/// Best segmentation up to a position: its last piece and its score.
#[derive(Debug, Clone, Copy)]
struct Best {
    id: u32,
    score: f32,
    from: usize,
}

/// Pieces that start with the bytes seen so far.
struct Prefix<'a> {
    bytes: &'a [u8],
    pieces: &'a [Piece],
    candidates: &'a [u32],
    length: usize,
}

impl Unigram {
    /// Builds the vocabulary; the pieces' names are spans of `bytes`, the file.
    pub fn new(bytes: &[u8], pieces: &[Piece]) -> anyhow::Result<Self> {
        let name = |id: u32| &bytes[pieces[id as usize].name.clone()];
        let shown = |id: u32| String::from_utf8_lossy(name(id));
        let count = u32::try_from(pieces.len()).context("too many pieces")?;
        let is_found = |id: &u32| {
            let kind = pieces[*id as usize].kind;
            matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused)
        };
        let (mut sorted, mut reserved): (Vec<u32>, Vec<u32>) = (0..count).partition(is_found);
        for list in [&mut sorted, &mut reserved] {
            list.sort_unstable_by_key(|id| name(*id));
            for pair in list.windows(2) {
                ensure!(
                    name(pair[0]) != name(pair[1]),
                    "the pieces {} and {} are both named {}",
                    pair[0],
                    pair[1],
                    shown(pair[0])
                );
            }
        }
        let unknown: Vec<u32> = reserved
            .iter()
            .copied()
            .filter(|id| pieces[*id as usize].kind == Kind::Unknown)
            .collect();
        let [unknown] = unknown[..] else {
            anyhow::bail!("{} unknown pieces; there must be exactly one", unknown.len());
        };
        let scores = || {
            pieces
                .iter()
                .filter(|piece| piece.kind == Kind::Normal)
                .map(|piece| piece.score)
        };
        Ok(Self {
            unknown,
            min_score: scores().fold(f32::MAX, f32::min),
            max_score: scores().fold(f32::MIN_POSITIVE, f32::max),
            any_user_defined: pieces.iter().any(|piece| piece.kind == Kind::UserDefined),
            sorted,
        })
    }

    /// Returns the id of the unknown piece.
    pub fn unknown(&self) -> u32 {
        self.unknown
    }

    /// Returns the length in bytes of the longest user-defined piece at the start of `rest`.
    pub fn user_defined_prefix(&self, bytes: &[u8], pieces: &[Piece], rest: &[u8]) -> usize {
        if !self.any_user_defined {
            return 0;
        }
        let mut prefix = self.prefix(bytes, pieces);
        let mut longest = 0;
        for byte in rest {
            if !prefix.extend(*byte) {
                break;
            }
            if prefix
                .id()
                .is_some_and(|id| pieces[id as usize].kind == Kind::UserDefined)
            {
                longest = prefix.length;
            }
        }
        longest
    }

    /// Segments `text` into pieces, in order.
    pub fn cut(&self, bytes: &[u8], pieces: &[Piece], text: &str) -> Vec<Cut> {
        let mut best: Vec<Option<Best>> = vec![None; text.len() + 1];
        for (from, character) in text.char_indices() {
            let so_far = best[from].map_or(0.0, |best| best.score);
            let next = from + character.len_utf8();
            let mut covered = false;
            let mut prefix = self.prefix(bytes, pieces);
            for byte in text[from..].bytes() {
                if !prefix.extend(byte) {
                    break;
                }
                let Some(id) = prefix.id().filter(|id| pieces[*id as usize].kind != Kind::Unused) else {
                    continue;
                };
                let end = from + prefix.length;
                let score = self.score(&pieces[id as usize], prefix.length) + so_far;
                improve(&mut best[end], id, score, from);
                covered |= end == next;
            }
            if !covered {
                let score = self.min_score - UNKNOWN_PENALTY + so_far;
                improve(&mut best[next], self.unknown, score, from);
            }
        }
        trace_back(&best)
    }

    /// Returns a piece's score, with a bonus for user-defined ones, so that they always win.
    fn score(&self, piece: &Piece, length: usize) -> f32 {
        if piece.kind == Kind::UserDefined {
            length as f32 * self.max_score - 0.1
        } else {
            piece.score
        }
    }

    fn prefix<'a>(&'a self, bytes: &'a [u8], pieces: &'a [Piece]) -> Prefix<'a> {
        Prefix {
            bytes,
            pieces,
            candidates: &self.sorted,
            length: 0,
        }
    }
}

impl Prefix<'_> {
    /// Appends a byte; returns whether any piece still matches.
    fn extend(&mut self, byte: u8) -> bool {
        let at = self.length;
        let (bytes, pieces) = (self.bytes, self.pieces);
        // All candidates share the bytes before `at`, so they are sorted by their byte at `at`.
        let there = |id: &u32| bytes[pieces[*id as usize].name.clone()].get(at).copied();
        let start = self.candidates.partition_point(|id| there(id) < Some(byte));
        let rest = &self.candidates[start..];
        self.candidates = &rest[..rest.partition_point(|id| there(id) == Some(byte))];
        self.length += 1;
        !self.candidates.is_empty()
    }

    /// Returns the piece equal to these bytes.
    fn id(&self) -> Option<u32> {
        let first = *self.candidates.first()?; // the shortest is first
        (self.pieces[first as usize].name.len() == self.length).then_some(first)
    }
}

fn improve(best: &mut Option<Best>, id: u32, score: f32, from: usize) {
    if best.is_none_or(|best| score > best.score) {
        *best = Some(Best { id, score, from });
    }
}

fn trace_back(best: &[Option<Best>]) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let mut end = best.len() - 1;
    while let Some(Best { id, from, .. }) = best[end] {
        cuts.push(Cut { id, span: from..end });
        end = from;
    }
    cuts.reverse();
    cuts
}
