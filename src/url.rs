//! Encoding of links.

use std::fmt::Write;

/// Returns a relative path as a link: bytes other than letters, digits, `-._~` and `/` become `%XX`.  RFC 3986
pub fn encode_path(path: &str) -> String {
    let mut link = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => link.push(byte.into()),
            byte => {
                let _ = write!(link, "%{byte:02X}"); // writing to a String cannot fail
            }
        }
    }
    link
}
