//! Text files as people save them: with a byte order mark, CRLF, blank lines at the end.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::super::reason::Reason;

/// Upper limit for a manifest; a larger file is probably a clip named as one.
const LARGEST: u64 = 1 << 30;

/// Returns a file's bytes without its byte order mark.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Reason> {
    let unreadable = |error: String| Reason::UnreadableFile { error };
    let file = File::open(path).map_err(|e| unreadable(e.to_string()))?;
    let size = file.metadata().map_err(|e| unreadable(e.to_string()))?.len();
    if size > LARGEST {
        return Err(unreadable("larger than 1 GiB, which no list of clips is".into()));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST)
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(e.to_string()))?;
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(unreadable("it is UTF-16; save it as UTF-8".into()));
    }
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        bytes.drain(..3);
    }
    Ok(bytes)
}

/// Returns the lines, trimmed; for one that is not UTF-8, the position of the first invalid byte. Blank lines are kept.
pub(super) fn lines(bytes: &[u8]) -> Vec<Result<&str, Reason>> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let line = |line| text(line).map(str::trim);
    bytes.split(|&b| b == b'\n').map(line).collect()
}

pub(super) fn text(bytes: &[u8]) -> Result<&str, Reason> {
    std::str::from_utf8(bytes).map_err(|e| Reason::NotUtf8 {
        byte: e.valid_up_to() + 1,
    })
}

/// Returns the number of lines without blank ones at the end.
pub(super) fn without_blank_end(lines: &[Result<&str, Reason>]) -> usize {
    lines
        .iter()
        .rposition(|line| *line != Ok(""))
        .map_or(0, |last| last + 1)
}
