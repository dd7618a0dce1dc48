//! Clean-up of prompts before tokenisation: `prompt_clean` of diffusers' Wan pipelines; [`caption_clean`] goes further.
//!
//! That is `ftfy.fix_text` with its defaults, HTML entities decoded twice, and whitespace collapsed. All of ftfy is
//! covered except the rarer mojibake; see `mojibake`.

mod caption;
mod html;
mod mojibake;

use std::borrow::Cow;

use icu_normalizer::ComposingNormalizerBorrowed;

pub use caption::caption_clean;

use mojibake::WINDOWS_1252;

/// Limit for the number of rounds; each decodes one more layer of entities.
const MAX_ROUNDS: usize = 32;

/// Cleans a prompt as the Wan pipelines do.
pub fn prompt_clean(text: &str) -> String {
    let text = fix_text(text);
    let text = htmlize::unescape(htmlize::unescape(text));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `ftfy.fix_text`, line by line.
pub fn fix_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut unescapes = true;
    for line in text.split_inclusive('\n') {
        // With a tag, entities may be intended.
        unescapes &= !line.contains('<');
        out.push_str(&fix_line(line, unescapes));
    }
    out
}

fn fix_line(line: &str, unescapes: bool) -> String {
    let mut text = line.to_string();
    for _ in 0..MAX_ROUNDS {
        let mut next = match unescapes {
            true => unescape(&text),
            false => text.clone(),
        };
        next = mojibake::repair(&next);
        next = next.chars().fold(String::with_capacity(next.len()), |mut out, c| {
            replace(c, &mut out);
            out
        });
        next = next.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}'], "\n");
        next = remove_terminal_escapes(&next);
        next.retain(|c| !is_control(c));
        next = ComposingNormalizerBorrowed::new_nfc().normalize(&next).into_owned();
        if next == text {
            break;
        }
        text = next;
    }
    text
}

/// Writes the replacement of a character.
fn replace(c: char, out: &mut String) {
    match c {
        // C1 controls are never intended: they stand for Windows-1252 characters.
        '\u{80}'..='\u{9f}' => out.push(WINDOWS_1252[c as usize - 0x80]),
        '\u{132}' => out.push_str("IJ"),
        '\u{133}' => out.push_str("ij"),
        '\u{149}' => out.push_str("\u{2bc}n"),
        '\u{1c4}' => out.push_str("D\u{17d}"),
        '\u{1c5}' => out.push_str("D\u{17e}"),
        '\u{1c6}' => out.push_str("d\u{17e}"),
        '\u{1c7}' => out.push_str("LJ"),
        '\u{1c8}' => out.push_str("Lj"),
        '\u{1c9}' => out.push_str("lj"),
        '\u{1ca}' => out.push_str("NJ"),
        '\u{1cb}' => out.push_str("Nj"),
        '\u{1cc}' => out.push_str("nj"),
        '\u{1f1}' => out.push_str("DZ"),
        '\u{1f2}' => out.push_str("Dz"),
        '\u{1f3}' => out.push_str("dz"),
        '\u{fb00}' => out.push_str("ff"),
        '\u{fb01}' => out.push_str("fi"),
        '\u{fb02}' => out.push_str("fl"),
        '\u{fb03}' => out.push_str("ffi"),
        '\u{fb04}' => out.push_str("ffl"),
        '\u{fb05}' => out.push_str("\u{17f}t"),
        '\u{fb06}' => out.push_str("st"),
        '\u{3000}' => out.push(' '),
        // Half and full widths.
        '\u{ff01}'..='\u{ffef}' => {
            let written = c.encode_utf8(&mut [0; 4]).to_string();
            out.push_str(&ComposingNormalizerBorrowed::new_nfkc().normalize(&written));
        }
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
        '\u{201c}'..='\u{201f}' => out.push('"'),
        _ => out.push(c),
    }
}

/// Checks for invisible characters that control a terminal or a layout.
fn is_control(c: char) -> bool {
    matches!(
        c,
        '\0'..='\u{8}'
            | '\u{b}'
            | '\u{e}'..='\u{1f}'
            | '\u{7f}'
            | '\u{206a}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}'
    )
}

/// Removes `ESC [ 1 ; 31 m` and similar.
fn remove_terminal_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("\u{1b}[") {
        out.push_str(before);
        let command = behind.trim_start_matches(|c: char| c.is_numeric() || c == ';');
        rest = match command.strip_prefix(|c: char| c.is_ascii_alphabetic()) {
            Some(rest) => rest,
            None => {
                out.push_str("\u{1b}[");
                behind
            }
        };
    }
    out.push_str(rest);
    out
}

/// Decodes the entities that end in a semicolon, including names written in capitals.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = entity(rest).unwrap_or(1);
        let (entity, behind) = rest.split_at(length);
        out.push_str(&meaning(entity));
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// Returns the length of the entity at the start.
fn entity(text: &str) -> Option<usize> {
    const LONGEST_NAME: usize = 24;
    let name = text.strip_prefix('&')?;
    let name = name.strip_prefix('#').unwrap_or(name);
    let end = name.find(|c: char| !c.is_ascii_alphanumeric())?;
    let ends = (1..=LONGEST_NAME).contains(&end) && name[end..].starts_with(';');
    ends.then_some(text.len() - name.len() + end + 1)
}

fn meaning(entity: &str) -> Cow<'_, str> {
    if entity == "&semi;" {
        return ";".into();
    }
    let read = |entity: &str| {
        let meant = htmlize::unescape(entity).into_owned();
        // Otherwise only a prefix of the name is an entity.
        Some(meant).filter(|meant| meant != entity && !meant.contains(';'))
    };
    if let Some(meant) = read(entity) {
        return meant.into();
    }
    let shouted = !entity.contains(|c: char| c.is_ascii_lowercase() || c == '#') && htmlize::unescape(entity) == entity;
    match shouted.then(|| read(&entity.to_ascii_lowercase())).flatten() {
        Some(meant) => meant.to_uppercase().into(),
        None => entity.into(),
    }
}
