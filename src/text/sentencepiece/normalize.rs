//! Normalisation of text as in the model's training: characters rewritten by rule, spaces collapsed and made visible as
//! U+2581.
//!
//! The rules (NFKC and more) come with the model as a double-array trie (J. Aoe, 1989; the layout is Darts-clone's): at
//! each position the longest matching rule is applied. Equals `sentencepiece::normalizer::Normalizer`.
//!
//! A unit of the trie has 32 bits: the low 8 are the byte that leads to it (with bit 31 set it is not a node but a
//! rule's value, the low 31 bits), bit 8 marks a node with a value, and the top 22 bits, shifted by 8 more if bit 9 is
//! set, are the offset of its children.

use anyhow::{Context, ensure};

/// Upper limit for a replacement; NFKC's longest has 33 bytes.
const MAX_REPLACEMENT_BYTES: usize = 1024;

const SPACE: &str = "\u{2581}";

/// Treatment of spaces.
#[derive(Debug, Clone, Copy)]
pub struct Spaces {
    /// One space before the text, so that its first word looks like any other.
    pub add_dummy_prefix: bool,
    /// True to put that space after the text.
    pub as_suffix: bool,
    pub remove_extra_whitespaces: bool,
    /// Spaces become U+2581.
    pub escape_whitespaces: bool,
}

impl Default for Spaces {
    fn default() -> Self {
        Self {
            add_dummy_prefix: true,
            as_suffix: false,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

/// Rules of one model.
#[derive(Debug)]
pub struct Normalizer {
    trie: Vec<u32>,
    /// Replacement texts, each ending in a zero byte.
    replacements: String,
    spaces: Spaces,
}

impl Normalizer {
    /// Parses `charsmap`: the trie's size in bytes as a little-endian u32, the trie, the replacements. Empty: no rules.
    pub fn new(charsmap: &[u8], spaces: Spaces) -> anyhow::Result<Self> {
        let mut normalizer = Self {
            trie: Vec::new(),
            replacements: String::new(),
            spaces,
        };
        if charsmap.is_empty() {
            return Ok(normalizer);
        }
        let (size, rest) = charsmap
            .split_first_chunk::<4>()
            .context("precompiled_charsmap is shorter than its header")?;
        let size = u32::from_le_bytes(*size) as usize;
        ensure!(
            size >= 4 && size.is_multiple_of(4) && size < rest.len(),
            "precompiled_charsmap declares a trie of {size} of its {} bytes",
            rest.len()
        );
        let (trie, replacements) = rest.split_at(size);
        let unit = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        normalizer.trie = trie.chunks_exact(4).map(unit).collect();
        normalizer.replacements = std::str::from_utf8(replacements)
            .context("precompiled_charsmap has replacements that are not UTF-8")?
            .to_string();
        ensure!(
            normalizer.replacements.ends_with('\0'),
            "precompiled_charsmap is truncated: its last rule does not end"
        );
        normalizer.check_values()?;
        Ok(normalizer)
    }

    /// Checks that every rule points at a replacement of plausible length.
    fn check_values(&self) -> anyhow::Result<()> {
        for (place, unit) in self.trie.iter().enumerate() {
            let is_value = unit >> 31 == 1;
            if is_value || !has_value(*unit) {
                continue;
            }
            let written = self
                .value(place, *unit)
                .and_then(|value| self.replacements.get(value..));
            let written = written.with_context(|| format!("precompiled_charsmap: unit {place} points nowhere"))?;
            ensure!(
                written.bytes().take(MAX_REPLACEMENT_BYTES).any(|byte| byte == 0),
                "precompiled_charsmap: the rule of unit {place} writes more than {MAX_REPLACEMENT_BYTES} bytes"
            );
        }
        Ok(())
    }

    /// Normalises `text`; `user_defined` returns the length in bytes of a piece at the start of the rest that must be
    /// kept.
    pub fn normalize(&self, text: &str, user_defined: impl Fn(&[u8]) -> usize) -> String {
        let mut rest = text;
        let spaces = self.spaces;
        if spaces.remove_extra_whitespaces {
            while let Some((" ", length)) = self.next(rest, &user_defined) {
                rest = &rest[length..];
            }
        }
        let mut out = String::with_capacity(text.len() + SPACE.len());
        if rest.is_empty() {
            return out;
        }
        let space = if spaces.escape_whitespaces { SPACE } else { " " };
        if spaces.add_dummy_prefix && !spaces.as_suffix {
            out.push_str(space);
        }
        let mut after_space = spaces.remove_extra_whitespaces;
        while let Some((mut written, length)) = self.next(rest, &user_defined) {
            if after_space {
                written = written.trim_start_matches(' ');
            }
            if !written.is_empty() {
                after_space = spaces.remove_extra_whitespaces && written.ends_with(' ');
                if spaces.escape_whitespaces {
                    written
                        .split_inclusive(' ')
                        .for_each(|part| match part.strip_suffix(' ') {
                            Some(word) => out.extend([word, space]),
                            None => out.push_str(part),
                        });
                } else {
                    out.push_str(written);
                }
            }
            rest = &rest[length..];
        }
        if spaces.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        if spaces.add_dummy_prefix && spaces.as_suffix {
            out.push_str(space);
        }
        out
    }

    /// Returns the replacement of the start of `rest`, and the number of bytes it replaces; None at the end.
    fn next<'a>(&'a self, rest: &'a str, user_defined: impl Fn(&[u8]) -> usize) -> Option<(&'a str, usize)> {
        let first = rest.chars().next()?;
        let kept = user_defined(rest.as_bytes());
        if kept > 0 {
            return Some((&rest[..kept], kept));
        }
        match self.longest_rule(rest) {
            Some(rule) => Some(rule),
            None => Some((&rest[..first.len_utf8()], first.len_utf8())),
        }
    }

    fn longest_rule(&self, rest: &str) -> Option<(&str, usize)> {
        let mut place = offset(*self.trie.first()?);
        let mut longest = None;
        for (depth, byte) in rest.bytes().enumerate() {
            place ^= usize::from(byte);
            let Some(unit) = self
                .trie
                .get(place)
                .filter(|unit| **unit & 0x8000_00ff == u32::from(byte))
            else {
                break;
            };
            if has_value(*unit) && rest.is_char_boundary(depth + 1) {
                longest = Some((self.value(place, *unit)?, depth + 1));
            }
            place ^= offset(*unit);
        }
        let (value, length) = longest?;
        let written = &self.replacements[value..];
        Some((&written[..written.find('\0')?], length))
    }

    /// Returns the start of the replacement for the rule that ends at `place`.
    fn value(&self, place: usize, unit: u32) -> Option<usize> {
        let value = self.trie.get(place ^ offset(unit))?;
        Some((value & 0x7fff_ffff) as usize)
    }
}

fn has_value(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 0x200) >> 6)) as usize
}
