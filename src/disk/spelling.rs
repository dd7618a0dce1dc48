//! Names that look the same and are not: `é` is one character in Unicode's composed form (NFC) and two in its decomposed
//! one (NFD), which macOS gives to files and leaves in archives of them. A name is found in whichever form it lies.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use icu_normalizer::ComposingNormalizerBorrowed;

/// A text in composed form: equal for texts that are canonically equivalent.
pub fn composed(text: &str) -> Cow<'_, str> {
    ComposingNormalizerBorrowed::new_nfc().normalize(text)
}

/// The path as it is there: itself, or the one whose names look the same. Itself, too, where there is no such path, or more
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

/// The only entry of a folder whose name looks like this one.
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
