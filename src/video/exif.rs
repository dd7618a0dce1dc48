//! Orientation of stills: EXIF's orientation (tag 0x0112 of the first directory) in JPEG, PNG, WebP and TIFF.
//!
//! The file itself is read, because decoders pass it on only in some versions of FFmpeg (5.1 for JPEG and WebP, 8 for
//! all). Without EXIF, XMP's `tiff:Orientation` counts, as in Pillow's `exif_transpose`, which diffusers uses to load
//! pictures. Numbers other than 1 to 8 are ignored.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Result, Seek, SeekFrom};
use std::path::Path;

/// Upper limit for a block of metadata.
const LONGEST: u64 = 1 << 20;

/// Number of parts of a file after which the search stops.
const MOST_PARTS: usize = 1 << 16;

/// `Orientation`
const ORIENTATION: u16 = 0x0112;

/// Tag of XMP within TIFF.
const XMP: u16 = 0x02bc;

/// Orientation of a still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Still {
    /// None: it is displayed as stored.
    Plain,
    /// EXIF orientation, 1 to 8.
    Oriented(u32),
}

/// Reads the orientation of a still of these formats; `None` for other files, and for unreadable ones.
pub fn of(path: &Path) -> Option<Still> {
    let mut file = BufReader::new(File::open(path).ok()?);
    let mut start = [0; 12];
    file.read_exact(&mut start).ok()?;
    let mut found = Found::default();
    // For a truncated file, what was found before counts.
    let _ = match start {
        [0xff, 0xd8, 0xff, ..] => jpeg(&mut file, &mut found),
        [0x89, b'P', b'N', b'G', ..] => png(&mut file, &mut found),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => webp(&mut file, &mut found),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => tiff(&mut file, &mut found),
        _ => return None,
    };
    Some(found.still())
}

/// Orientations found so far.
#[derive(Debug, Default)]
struct Found {
    exif: Option<u32>,
    xmp: Option<u32>,
}

impl Found {
    fn still(&self) -> Still {
        let said = self.exif.or(self.xmp).filter(|number| (1..=8).contains(number));
        said.map_or(Still::Plain, Still::Oriented)
    }

    /// Reads a block of EXIF: a small TIFF, in some files after a name.
    fn read_exif(&mut self, block: &[u8]) {
        let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
        let mut inner = Found::default();
        if tiff(&mut Cursor::new(block), &mut inner).is_ok() {
            self.exif = self.exif.or(inner.exif);
        }
    }

    /// Reads a block of XMP: `tiff:Orientation="6"` or `<tiff:Orientation>6<`.
    fn read_xmp(&mut self, block: &[u8]) {
        const NAME: &[u8] = b"tiff:Orientation";
        let mut places = block.windows(NAME.len()).enumerate().filter(|(_, part)| *part == NAME);
        let number = places.find_map(|(at, _)| match &block[at + NAME.len()..] {
            [b'=', b'"', digit, ..] | [b'>', digit, ..] if digit.is_ascii_digit() => Some(u32::from(digit - b'0')),
            _ => None,
        });
        self.xmp = self.xmp.or(number);
    }
}

/// Reads segments `ff <kind> <length>` up to the picture's data.
fn jpeg(file: &mut (impl Read + Seek), found: &mut Found) -> Result<()> {
    file.seek(SeekFrom::Start(2))?;
    for _ in 0..MOST_PARTS {
        let mut marker = [0; 1];
        while marker[0] != 0xff {
            file.read_exact(&mut marker)?;
        }
        while marker[0] == 0xff {
            file.read_exact(&mut marker)?; // any number of ff may precede a kind
        }
        match marker[0] {
            0xda | 0xd9 => break,                  // the data; the end
            0x00 | 0x01 | 0xd0..=0xd8 => continue, // alone, without a length
            _ => {}
        }
        let mut length = [0; 2];
        file.read_exact(&mut length)?;
        let length = u64::from(u16::from_be_bytes(length)).saturating_sub(2);
        if marker[0] != 0xe1 {
            pass(file, length)?;
            continue;
        }
        let block = block(file, length)?;
        if block.starts_with(b"Exif\0\0") {
            found.read_exif(&block);
        } else if let Some(xmp) = block.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            found.read_xmp(xmp);
        }
    }
    Ok(())
}

/// Reads chunks `<length> <kind> <data> <checksum>`; `eXIf` may follow the picture.
fn png(file: &mut (impl Read + Seek), found: &mut Found) -> Result<()> {
    file.seek(SeekFrom::Start(8))?;
    for _ in 0..MOST_PARTS {
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        let [a, b, c, d, kind @ ..] = head;
        let length = u64::from(u32::from_be_bytes([a, b, c, d]));
        match &kind {
            b"IEND" => break,
            b"eXIf" | b"iTXt" if length <= LONGEST => {
                let block = block(file, length)?;
                match block.strip_prefix(b"XML:com.adobe.xmp\0") {
                    Some(xmp) if &kind == b"iTXt" => found.read_xmp(xmp),
                    None if &kind == b"eXIf" => found.read_exif(&block),
                    _ => {}
                }
            }
            _ => pass(file, length)?,
        }
        pass(file, 4)?;
    }
    Ok(())
}

/// Reads chunks `<kind> <length> <data>` of even length.
fn webp(file: &mut (impl Read + Seek), found: &mut Found) -> Result<()> {
    file.seek(SeekFrom::Start(12))?;
    for _ in 0..MOST_PARTS {
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        let [kind @ .., a, b, c, d] = head;
        let length = u64::from(u32::from_le_bytes([a, b, c, d]));
        match &kind {
            b"EXIF" if length <= LONGEST => found.read_exif(&block(file, length)?),
            b"XMP " if length <= LONGEST => found.read_xmp(&block(file, length)?),
            _ => pass(file, length)?,
        }
        pass(file, length % 2)?;
    }
    Ok(())
}

/// Reads the first directory of a TIFF: entries `<tag> <type> <count> <value or its offset>`.
fn tiff(file: &mut (impl Read + Seek), found: &mut Found) -> Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let mut head = [0; 8];
    file.read_exact(&mut head)?;
    let [order @ .., a, b, c, d] = head;
    let big = match &order {
        b"II*\0" => false,
        b"MM\0*" => true,
        _ => return Ok(()),
    };
    let short = |bytes: [u8; 2]| {
        if big {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        }
    };
    let long = |bytes: [u8; 4]| {
        if big {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    };
    file.seek(SeekFrom::Start(long([a, b, c, d]).into()))?;
    let mut count = [0; 2];
    file.read_exact(&mut count)?;
    let mut xmp = None;
    for _ in 0..short(count) {
        let mut entry = [0; 12];
        file.read_exact(&mut entry)?;
        let [tag0, tag1, kind0, kind1, n0, n1, n2, n3, value @ ..] = entry;
        let number = match short([kind0, kind1]) {
            1 => u32::from(value[0]),                    // bytes
            3 => u32::from(short([value[0], value[1]])), // shorts
            _ => long(value),
        };
        match short([tag0, tag1]) {
            ORIENTATION => found.exif = found.exif.or(Some(number)),
            XMP => xmp = Some((long(value), long([n0, n1, n2, n3]))),
            _ => {}
        }
    }
    if let Some((at, length)) = xmp.filter(|(_, length)| u64::from(*length) <= LONGEST) {
        file.seek(SeekFrom::Start(at.into()))?;
        found.read_xmp(&block(file, length.into())?);
    }
    Ok(())
}

/// Reads `length` bytes, or as many as there are.
fn block(file: &mut impl Read, length: u64) -> Result<Vec<u8>> {
    let mut block = Vec::new();
    file.take(length).read_to_end(&mut block)?;
    Ok(block)
}

/// Skips irrelevant bytes.
fn pass(file: &mut impl Seek, bytes: u64) -> Result<()> {
    file.seek(SeekFrom::Current(bytes as i64)).map(drop)
}
