//! Counts the pictures of an AVI stream, including empty chunks: these repeat the previous picture (`drop frames` of
//! VirtualDub, OBS and FFmpeg's own muxer). libav skips them, so that a count of packets is less than the header's
//! although nothing is missing.

use std::fs::File;
use std::io::{BufReader, Read, Result, Seek, SeekFrom};
use std::path::Path;

/// Maximum nesting of lists: RIFF, movi, rec.
const DEEPEST: usize = 3;

/// Counts the pictures of the video stream `index`, including empty ones, in all `RIFF` lists up to the end of the
/// file.
pub fn pictures(path: &Path, index: usize) -> Result<usize> {
    let mut file = BufReader::new(File::open(path)?);
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut walk = Walk {
        file,
        stream: [b'0' + (index / 10 % 10) as u8, b'0' + (index % 10) as u8],
        count: 0,
    };
    walk.list(end, 0)?;
    Ok(walk.count)
}

struct Walk {
    file: BufReader<File>,
    /// First two letters of its chunks' names.
    stream: [u8; 2],
    count: usize,
}

impl Walk {
    /// Reads chunks `<name> <length> <data>` of even length, up to `end`. A chunk that ends after it does not count.
    fn list(&mut self, end: u64, depth: usize) -> Result<()> {
        let mut at = self.file.stream_position()?;
        while at + 8 <= end {
            let mut head = [0; 8];
            self.file.read_exact(&mut head)?;
            let [name @ .., a, b, c, d] = head;
            let length = u64::from(u32::from_le_bytes([a, b, c, d]));
            let next = at + 8 + length + length % 2;
            match &name {
                b"RIFF" | b"LIST" if depth < DEEPEST && length >= 4 => {
                    self.file.seek_relative(4)?; // the kind of list
                    self.list(end.min(at + 8 + length), depth + 1)?;
                }
                [a, b, b'd', b'b' | b'c'] if [*a, *b] == self.stream && at + 8 + length <= end => self.count += 1,
                _ => {}
            }
            let here = self.file.stream_position()?;
            self.file.seek_relative(next as i64 - here as i64)?; // keeps the read buffer
            at = next;
        }
        Ok(())
    }
}
