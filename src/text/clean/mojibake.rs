//! Mojibake: UTF-8 that was decoded as Windows-1252 or Latin-1, `Ã©` for `é`, `â€™` for `’`.
//!
//! Adjacent characters whose bytes form UTF-8 are replaced, if somewhere in the text that is unlikely to be an
//! accident: one sequence of three bytes or more, two sequences in a row, or a pair that does not end in common
//! punctuation (as `É…` at the end of a French word in capitals does). ftfy decides by a longer list of unlikely
//! neighbours and knows eight more encodings, lost bytes and spaces that were 0xA0; those texts are left unchanged
//! here.

/// Characters of Windows-1252 at 0x80 to 0x9f; undefined bytes map to themselves.
pub const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Characters that often follow the last letter of a word.
const PUNCTUATION: [char; 18] = [
    '\u{a0}', '\u{ad}', '·', '´', '–', '—', '…', '‘', '’', '‚', '“', '”', '„', '•', '‹', '›', '«', '»',
];

/// Repairs the text, repeatedly if it was decoded wrongly several times.
pub fn repair(text: &str) -> String {
    let mut text = text.to_string();
    // Each round makes it shorter.
    while let Some(repaired) = repair_once(&text) {
        text = repaired;
    }
    text
}

fn repair_once(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let characters: Vec<char> = text.chars().collect();
    let bytes: Vec<u8> = characters.iter().map(|c| byte(*c).unwrap_or_default()).collect();
    let convincing = |at| is_convincing(&spelled(&bytes[at..]), characters.get(at + 1));
    if !(0..characters.len()).any(convincing) {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < characters.len() {
        let spelled = spelled(&bytes[at..]);
        if spelled.is_empty() {
            out.push(characters[at]);
        }
        out.push_str(&spelled);
        at += spelled.len().max(1); // a character for each byte
    }
    Some(out)
}

/// Returns the byte above 0x7f that a character was decoded from.
fn byte(c: char) -> Option<u8> {
    let place = WINDOWS_1252.iter().position(|other| *other == c);
    match place {
        Some(place) => Some(0x80 + place as u8),
        None => u8::try_from(u32::from(c)).ok().filter(|byte| *byte >= 0x80),
    }
}

/// Decodes the consecutive UTF-8 sequences at the start.
fn spelled(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut rest = bytes;
    while let Some(lead) = rest.first() {
        let width = match lead {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => break,
        };
        let Some(Ok(character)) = rest.get(..width).map(std::str::from_utf8) else {
            break;
        };
        out.push_str(character);
        rest = &rest[width..];
    }
    out
}

fn is_convincing(spelled: &str, second: Option<&char>) -> bool {
    match spelled.len() {
        0 => false,
        2 => !second.is_some_and(|second| PUNCTUATION.contains(second)),
        _ => true,
    }
}
