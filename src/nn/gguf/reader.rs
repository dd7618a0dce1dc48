//! Values of a GGUF header, one after the other, never beyond the file's end.

use std::io::{self, Read};

use anyhow::{Context, bail, ensure};

use super::Value;

/// Arrays within arrays that are followed.
const DEEPEST: usize = 4;

/// Bytes of the shortest string or array: its length.
const SHORTEST: u64 = 8;

pub(super) struct Reader<R> {
    file: R,
    at: u64,
    length: u64,
}

/// A type of metadata.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A number of this many bytes.
    Unsigned(usize),
    Signed(usize),
    Float(usize),
    Bool,
    Text,
    Array,
}

impl Kind {
    fn of(id: u32) -> anyhow::Result<Self> {
        Ok(match id {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::Float(4),
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::Float(8),
            _ => bail!("type {id} is none of metadata's"),
        })
    }

    /// Bytes of a value, if all have as many; None for the others.
    fn bytes(self) -> Option<u64> {
        match self {
            Self::Unsigned(size) | Self::Signed(size) | Self::Float(size) => Some(size as u64),
            Self::Bool => Some(1),
            Self::Text | Self::Array => None,
        }
    }
}

impl<R: Read> Reader<R> {
    /// Reader of a file of `length` bytes, from its start on.
    pub(super) fn new(file: R, length: u64) -> Self {
        Self { file, at: 0, length }
    }

    /// Returns the place of the next byte.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    fn left(&self) -> u64 {
        self.length.saturating_sub(self.at)
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        ensure!(
            self.left() >= N as u64 && self.file.read_exact(&mut bytes).is_ok(),
            "the header ends at {}, in the middle; fetch the file again",
            self.at
        );
        self.at += N as u64;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> anyhow::Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> anyhow::Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// Reads a number of things, each of which takes at least `shortest` bytes.
    pub(super) fn count(&mut self, things: &str, shortest: u64) -> anyhow::Result<u64> {
        let count = self.u64()?;
        let left = self.left();
        ensure!(
            count <= left / shortest,
            "{count} {things} do not fit in the {left} bytes that are left; fetch the file again"
        );
        Ok(count)
    }

    pub(super) fn string(&mut self) -> anyhow::Result<String> {
        let length = self.count("bytes of a string", 1)?;
        let mut bytes = Vec::new(); // grows as bytes come
        let came = (&mut self.file).take(length).read_to_end(&mut bytes)?;
        ensure!(came as u64 == length, "a string at {} runs beyond the file", self.at);
        self.at += length;
        String::from_utf8(bytes).context("a string is not UTF-8")
    }

    pub(super) fn value(&mut self) -> anyhow::Result<Value> {
        let kind = self.u32()?;
        self.value_of(Kind::of(kind)?, 0)
    }

    fn value_of(&mut self, kind: Kind, depth: usize) -> anyhow::Result<Value> {
        Ok(match kind {
            Kind::Unsigned(size) => Value::Unsigned(self.number(size)?),
            Kind::Signed(size) => {
                let unused = 64 - 8 * size as u32;
                Value::Signed((self.number(size)? << unused).cast_signed() >> unused)
            }
            Kind::Float(4) => Value::Float(f32::from_bits(self.u32()?).into()),
            Kind::Float(_) => Value::Float(f64::from_bits(self.u64()?)),
            Kind::Bool => Value::Bool(self.bytes::<1>()? != [0]),
            Kind::Text => Value::Text(self.string()?),
            Kind::Array => Value::Array(self.skip_array(depth)?),
        })
    }

    /// Reads a whole number of 1, 2, 4 or 8 bytes.
    fn number(&mut self, size: usize) -> anyhow::Result<u64> {
        Ok(match size {
            1 => self.bytes::<1>()?[0].into(),
            2 => u16::from_le_bytes(self.bytes()?).into(),
            4 => self.u32()?.into(),
            _ => self.u64()?,
        })
    }

    /// Goes past an array; returns its length.
    fn skip_array(&mut self, depth: usize) -> anyhow::Result<u64> {
        ensure!(depth < DEEPEST, "more than {DEEPEST} arrays within each other");
        let id = self.u32()?;
        let kind = Kind::of(id)?;
        let size = kind.bytes().unwrap_or(SHORTEST);
        let count = self.count("values of an array", size)?;
        match kind.bytes() {
            Some(size) => {
                let bytes = count * size; // fits, by `count`
                let came = io::copy(&mut (&mut self.file).take(bytes), &mut io::sink())?;
                ensure!(came == bytes, "an array at {} runs beyond the file", self.at);
                self.at += bytes;
            }
            None => {
                for _ in 0..count {
                    self.value_of(kind, depth + 1)?;
                }
            }
        }
        Ok(count)
    }
}
