//! Detects a file's format by its first bytes, whatever its name: users get pointers, pickles and web pages under the
//! names of weights.
//!
//! Facts: the specification of Git LFS's pointer, `torch.save` (a ZIP file, before 1.6 a bare pickle), llama.cpp's
//! GGUF.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::bail;

/// Number of bytes that are read, the longest signature.
const LOOKED_AT: u64 = 64;

/// Signatures of formats, with a message for each.
const KINDS: [(&[u8], &str); 12] = [
    (b"version https://git-lfs.github.com/spec/", LFS),
    (b"version https://hawser.github.com/spec/", LFS),
    (
        b"# xet version",
        "a pointer of git-xet, not the file itself; run git xet checkout, or download it again",
    ),
    (
        b"/annex/objects/",
        "a pointer of git-annex, not the file itself; run git annex get",
    ),
    (b"PK\x03\x04", PICKLE),
    // torch's magic number, with other beginnings of pickles; \x80\x02 alone may be the length of a safetensors header.
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", PICKLE),
    (b"\x80\x02}q", PICKLE),
    (b"\x80\x02ccollections", PICKLE),
    (
        b"GGUF",
        "a GGUF file, which is read in place of a transformer alone; a safetensors file is needed",
    ),
    (
        b"\x89HDF\r\n",
        "an HDF5 file (Keras, TensorFlow); a safetensors file is needed",
    ),
    (b"<!DOCTYPE", WEB_PAGE),
    (b"<html", WEB_PAGE),
];

const LFS: &str =
    "a pointer of Git LFS, not the file itself; run git lfs pull where it was cloned, or download it again";

const PICKLE: &str = "a file of torch.save (.bin, .pt, .ckpt), not safetensors; such files can run code, so none is read: \
                      load it with torch.load(FILE, weights_only=True), write it with safetensors.torch.save_file";

const WEB_PAGE: &str = "a web page, not the file itself; it was downloaded from a page that shows it, or from one that asks \
                        for a login";

/// Returns what the file at `path` is instead of text or safetensors, and advice; None if nothing is recognised.
pub fn explain(path: &Path) -> Option<&'static str> {
    let mut start = Vec::new();
    File::open(path).ok()?.take(LOOKED_AT).read_to_end(&mut start).ok()?;
    if start.is_empty() {
        return Some("empty; download it again");
    }
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start).trim_ascii_start();
    let begins = |magic: &[u8]| {
        text.get(..magic.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(magic))
    };
    KINDS.iter().find(|(magic, _)| begins(magic)).map(|(_, what)| *what)
}

/// Rejects a file recognised as something else than text or safetensors.
///
/// # Errors
/// Names its format, with advice.
pub fn refuse(path: &Path) -> anyhow::Result<()> {
    match explain(path) {
        Some(what) => bail!("is {what}"),
        None => Ok(()),
    }
}
