//! Text files as saved by editors of Unix and Windows: UTF-8, with or without a byte order mark, or UTF-16 with one.

/// Decodes bytes, without the byte order mark.
///
/// # Errors
/// Names the probable encoding, with advice.
pub fn decode(bytes: Vec<u8>) -> Result<String, &'static str> {
    let units = |of: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes[2..].as_chunks::<2>();
        let units = pairs.iter().map(|pair| of(*pair));
        let text = char::decode_utf16(units).collect::<Result<String, _>>();
        text.ok()
            .filter(|_| rest.is_empty())
            .ok_or("is UTF-16 that is cut off or broken; save it as UTF-8")
    };
    match &bytes[..] {
        [0xff, 0xfe, ..] => units(u16::from_le_bytes),
        [0xfe, 0xff, ..] => units(u16::from_be_bytes),
        // Letters of a script, each with a zero next to it.
        [0, _, ..] | [_, 0, ..] => Err("looks like UTF-16 without a mark at its start; save it as UTF-8"),
        _ => match String::from_utf8(bytes) {
            Ok(text) => Ok(text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text)),
            Err(_) => Err("is not UTF-8; save it as UTF-8"),
        },
    }
}
