//! Names that look the same but differ: `é` is one character in Unicode's composed form (NFC) and two in its decomposed
//! form (NFD), which macOS gives to files and to archives of them. Lookups accept either form.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use icu_normalizer::ComposingNormalizerBorrowed;

/// Returns a text in composed form: equal for canonically equivalent texts.
pub fn composed(text: &str) -> Cow<'_, str> {
    ComposingNormalizerBorrowed::new_nfc().normalize(text)
}

/// Returns the path as it exists: itself, or the one whose names look the same. Itself, too, if there is none or more
/// than one.
pub fn spelled(path: &Path) -> Cow<'_, Path> {
    if path.as_os_str().is_ascii() || path.symlink_metadata().is_ok() {
        return path.into();
    }
    let mut there = PathBuf::new();
    for part in path.components() {
        let whole = there.join(part);
        let Component::Normal(name) = part else {
            there = whole;
            continue;
        };
        there = match whole.symlink_metadata() {
            Ok(_) => whole,
            Err(_) => match same_looking(&there, name) {
                Some(found) => found,
                None => return path.into(),
            },
        };
    }
    there.into()
}

/// Returns the only entry of a folder whose name looks like this one.
fn same_looking(folder: &Path, name: &OsStr) -> Option<PathBuf> {
    let listed = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let name = composed(name.to_str()?);
    let entries = std::fs::read_dir(listed).ok()?.flatten().map(|entry| entry.file_name());
    let mut found = entries.filter(|entry| entry.to_str().is_some_and(|entry| composed(entry) == name));
    let first = found.next()?;
    found.next().is_none().then(|| folder.join(first))
}
