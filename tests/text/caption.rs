//! Captions as diffusers cleans them for models that were trained on such. `tests/fixtures/captions.json` is written by
//! `scripts/fixtures/make_captions.py`.

use std::fs;
use std::path::Path;

use vtrain::text::clean::caption_clean;

#[test]
fn captions_are_cleaned_as_in_diffusers_with_bs4_and_ftfy() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captions.json");
    let rows: Vec<(String, String)> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(rows.len() > 80);
    let wrong: Vec<String> = rows
        .iter()
        .map(|(text, clean)| (text, clean, caption_clean(text)))
        .filter(|(_, clean, ours)| ours != *clean)
        .map(|(text, clean, ours)| format!("{text:?}: {ours:?}, not {clean:?}"))
        .collect();
    assert!(wrong.is_empty(), "{} lines:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn cleaning_ends_on_anything() {
    for long in [
        "a-b.", "<b ", "&#", "%25", "<!--", "x.com@", "\"'", "<a b=\"", "&amp;", "-\u{301}",
    ] {
        caption_clean(&long.repeat(500));
    }
}
