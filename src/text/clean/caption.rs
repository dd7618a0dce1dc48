//! Clean-up of captions as of those that some models were trained on: `_clean_caption` of diffusers' pipelines of
//! DeepFloyd IF, PixArt and Allegro, twice, as `_text_preprocessing` does where bs4 and ftfy are installed.
//!
//! Lower case; without addresses, tags, nicknames, CJK, numbers of articles, names of files, advertisements; punctuation
//! simplified. Rules follow one another, and some see what others left.
//!
//! Letters and digits, as expressions see them, are those of Unicode; Python counts no combining marks among them, so that the
//! end of a word that ends in one may differ. Of ftfy what [`fix_text`] knows is there; lower case spoils most mojibake before.

use std::sync::LazyLock;

use fancy_regex::{Regex, RegexBuilder};

use super::fix_text;
use super::html::html_text;

/// Rules as (expression, replacement), one after the other.
type Rules = Vec<(Regex, &'static str)>;

/// Addresses, before tags are removed.
const ADDRESSES: &[(&str, &str)] = &[
    ("<person>", "person"),
    (
        r"\b((?:https?:(?:/{1,3}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)))",
        "",
    ),
    (
        r"\b((?:www:(?:/{1,3}|[a-zA-Z0-9%])|[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)))",
        "",
    ),
];

/// Rules for text without tags.
const TEXT: &[(&str, &str)] = &[
    (r"@\w+\b", ""),
    // Strokes, phonetic extensions, letters and months, compatibility, ideographs, hexagrams.
    (r"[\u{31c0}-\u{9fff}]+", ""),
    (
        r"[\-\u{58a}\u{5be}\u{1400}\u{1806}\u{2010}-\u{2015}\u{2e17}\u{2e1a}\u{2e3a}\u{2e3b}\u{2e40}\u{301c}\u{3030}\u{30a0}\u{fe31}\u{fe32}\u{fe58}\u{fe63}\u{ff0d}]+",
        "-",
    ),
    ("[`´«»“”¨]", "\""),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
    ("[\"']{2,}", "\""),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
];

/// Rules for text whose encoding is repaired.
const REPAIRED: &[(&str, &str)] = &[
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""), // Latin, Cyrillic, a sign
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", "$1 "),
    (r"\s+", " "),
    (r#"^["']([\w\W]+)["']$"#, "$1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
];

/// Words that are joined by more than this many hyphens are parted.
const HYPHENS: usize = 3;

static ADDRESS_RULES: LazyLock<Rules> = LazyLock::new(|| compiled(ADDRESSES));
static TEXT_RULES: LazyLock<Rules> = LazyLock::new(|| compiled(TEXT));
static REPAIRED_RULES: LazyLock<Rules> = LazyLock::new(|| compiled(REPAIRED));

fn compiled(rules: &[(&str, &'static str)]) -> Rules {
    let compile = |expression: &str| RegexBuilder::new(expression).backtrack_limit(usize::MAX).build();
    rules
        .iter()
        .map(|(expression, by)| (compile(expression).expect("the rules are tested, one by one"), *by))
        .collect()
}

/// Cleans a caption.
pub fn caption_clean(text: &str) -> String {
    cleaned(&cleaned(text))
}

fn cleaned(text: &str) -> String {
    let text = unquoted(&text.replace('+', " ")).trim().to_lowercase();
    let text = html_text(&replaced(text, &ADDRESS_RULES));
    let mut text = replaced(text, &TEXT_RULES);
    if text.matches(['-', '_']).count() > HYPHENS {
        text = text.replace(['-', '_'], " ");
    }
    let text = fix_text(&text);
    let text = htmlize::unescape(htmlize::unescape(text));
    replaced(text.into_owned(), &REPAIRED_RULES).trim().to_string()
}

fn replaced(text: String, rules: &Rules) -> String {
    rules.iter().fold(text, |text, (expression, by)| {
        // It fails only on what takes too long, which has no limit here.
        let replaced = expression
            .try_replacen(&text, 0, *by)
            .map(|replaced| replaced.into_owned());
        replaced.unwrap_or(text)
    })
}

/// Decodes `%20` and the like; bytes that are no UTF-8 become replacement characters.
fn unquoted(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((before, behind)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        let digits = behind
            .get(..2)
            .filter(|digits| digits.chars().all(|c| c.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(b'%');
                rest = behind;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}
