//! Protobuf's wire format, parsed in place: numbered fields of integers, 32 and 64 bits, and spans of bytes.
//!
//! A message is iterated over, never copied; every span is within the message that holds it.
//! <https://protobuf.dev/programming-guides/encoding/>

use std::ops::Range;

use anyhow::{Context, bail};

/// Iterator over the fields of the message that fills `span` of `bytes`.
pub struct Message<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

/// One field.
#[derive(Debug)]
pub struct Field {
    /// Number of the field in its schema.
    pub number: u64,
    /// Value of the field.
    pub value: Value,
}

/// Value of a field; the schema decides the meaning of an integer or a span.
#[derive(Debug)]
pub enum Value {
    /// A varint.
    Integer(u64),
    /// Four bytes.
    Bits32(u32),
    /// Eight bytes, which are never used here.
    Bits64,
    /// Span of a string, bytes or message in the buffer.
    Bytes(Range<usize>),
}

impl<'a> Message<'a> {
    /// Message in `span`, which must be within `bytes`.
    pub fn new(bytes: &'a [u8], span: Range<usize>) -> Self {
        let end = span.end.min(bytes.len());
        Self {
            bytes,
            at: span.start.min(end),
            end,
        }
    }

    fn field(&mut self) -> anyhow::Result<Field> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Integer(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Bits64
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let span = self.take(4)?;
                let bits = self.bytes[span].try_into().expect("the span has 4 bytes");
                Value::Bits32(u32::from_le_bytes(bits))
            }
            other => bail!("byte {}: a field of wire type {other}", self.at),
        };
        let number = tag >> 3;
        if number == 0 {
            bail!("byte {}: a field numbered 0", self.at);
        }
        Ok(Field { number, value })
    }

    /// Reads seven bits per byte, the lowest first, the top bit set on all but the last.
    fn varint(&mut self) -> anyhow::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let span = self.take(1)?;
            let byte = self.bytes[span.start];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bail!("byte {}: an integer of more than ten bytes", self.at)
    }

    fn take(&mut self, length: u64) -> anyhow::Result<Range<usize>> {
        let left = self.end - self.at;
        let length = usize::try_from(length).ok().filter(|length| *length <= left);
        let length =
            length.with_context(|| format!("byte {}: a field runs over the end; the file is truncated", self.at))?;
        let span = self.at..self.at + length;
        self.at = span.end;
        Ok(span)
    }
}

impl Iterator for Message<'_> {
    type Item = anyhow::Result<Field>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.end {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.end; // nothing after a broken field can be trusted
        }
        Some(field)
    }
}

impl Field {
    /// Returns the value as an integer.
    ///
    /// # Errors
    /// Fails for a field of another kind.
    pub fn integer(&self) -> anyhow::Result<u64> {
        match self.value {
            Value::Integer(value) => Ok(value),
            _ => bail!("field {} is not an integer", self.number),
        }
    }

    /// Returns the value as an f32.
    ///
    /// # Errors
    /// Fails for a field of another kind.
    pub fn float(&self) -> anyhow::Result<f32> {
        match self.value {
            Value::Bits32(bits) => Ok(f32::from_bits(bits)),
            _ => bail!("field {} is not a float", self.number),
        }
    }

    /// Returns the span of the value's bytes.
    ///
    /// # Errors
    /// Fails for a field of another kind.
    pub fn bytes(&self) -> anyhow::Result<Range<usize>> {
        match &self.value {
            Value::Bytes(span) => Ok(span.clone()),
            _ => bail!("field {} is not a string", self.number),
        }
    }
}
