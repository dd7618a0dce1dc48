//! HEIF pictures (ISO/IEC 23008-12), as phones take them: recognised by their brand, because libav takes them for
//! videos or for nothing, and reads single tiles of them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Number of brands that are read.
const MOST_BRANDS: usize = 32;

/// Returns `HEIC`, `AVIF` or `HEIF`; None for other files.
pub fn kind(path: &Path) -> Option<&'static str> {
    let mut start = Vec::new();
    let file = File::open(path).ok()?;
    file.take(16 + 4 * MOST_BRANDS as u64).read_to_end(&mut start).ok()?;
    kind_of(&start)
}

/// `<length> ftyp <major brand> <version> <brands>`
fn kind_of(start: &[u8]) -> Option<&'static str> {
    let (brands, _) = start.as_chunks::<4>();
    let [length, name, major, _version, others @ ..] = brands else {
        return None;
    };
    if name != b"ftyp" {
        return None;
    }
    let count = (u32::from_be_bytes(*length) as usize / 4).saturating_sub(4);
    let others = &others[..count.min(others.len())];
    let named = |brand: &[u8; 4]| match brand {
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"hevm" | b"hevs" => Some("HEIC"),
        b"avif" | b"avis" => Some("AVIF"),
        _ => None,
    };
    match major {
        b"mif1" | b"msf1" | b"mif2" => others.iter().find_map(named).or(Some("HEIF")),
        major => named(major),
    }
}
