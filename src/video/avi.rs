//! The number of pictures of a stream that an AVI file holds, those included whose chunks are empty: the picture before is shown
//! again for as long (`drop frames` of VirtualDub, OBS and FFmpeg's own muxer). libav passes over these, so that a count of
//! packets falls short of what the header promises although nothing is missing.

use std::fs::File;
use std::io::{BufReader, Read, Result, Seek, SeekFrom};
use std::path::Path;

/// Lists within lists: RIFF, movi, rec.
const DEEPEST: usize = 3;

/// The pictures of the video stream `index`, whole ones and empty ones, in `RIFF` after `RIFF` up to the file's end.
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
    /// The first two letters of its chunks' names.
    stream: [u8; 2],
    count: usize,
}

impl Walk {
    /// Chunks `<name> <length> <data>` of even length, up to `end`. One that ends behind it does not count.
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
                    self.file.seek_relative(4)?; // what kind of list it is
                    self.list(end.min(at + 8 + length), depth + 1)?;
                }
                [a, b, b'd', b'b' | b'c'] if [*a, *b] == self.stream && at + 8 + length <= end => self.count += 1,
                _ => {}
            }
            let here = self.file.stream_position()?;
            self.file.seek_relative(next as i64 - here as i64)?; // keeps what is read ahead
            at = next;
        }
        Ok(())
    }
}
