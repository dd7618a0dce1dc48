//! A GGUF file that is written tensor by tensor, in order: version 3, with the default alignment.

use std::path::Path;

use anyhow::ensure;

use super::{DEFAULT_ALIGNMENT, MOST_SIDES, Value};
use crate::disk::TempFile;
use crate::nn::storage::ggml::GgmlType;

/// Version that is written.
const VERSION: u32 = 3;

/// Types of metadata.
const U32: u32 = 4;
const TEXT: u32 = 8;

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name.
    pub name: String,
    /// Type of its blocks.
    pub kind: GgmlType,
    /// Sides in torch's order.
    pub shape: Vec<usize>,
}

/// A file that is being written.
pub struct GgufWriter {
    file: TempFile,
    /// Tensors that are still to come, the next one last.
    awaited: Vec<GgufTensor>,
}

impl GgufTensor {
    /// Returns the bytes of its blocks.
    pub fn bytes(&self) -> anyhow::Result<u64> {
        let row = self.shape.last().copied().unwrap_or(1);
        let bytes = self.kind.bytes(self.shape.iter().product());
        match bytes {
            Some(bytes) if row.is_multiple_of(self.kind.block()) => Ok(bytes as u64),
            _ => anyhow::bail!("{} {:?} is no whole blocks of {}", self.name, self.shape, self.kind),
        }
    }
}

impl GgufWriter {
    /// Creates the file and writes its header: texts and whole numbers as metadata, and these tensors.
    ///
    /// # Errors
    /// Fails if it cannot be written, for rows that are no whole blocks, and for tensors of more sides than are read.
    pub fn create(path: &Path, metadata: &[(&str, Value)], tensors: Vec<GgufTensor>) -> anyhow::Result<Self> {
        let mut header = b"GGUF".to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            text(&mut header, key);
            match value {
                Value::Text(value) => {
                    header.extend(TEXT.to_le_bytes());
                    text(&mut header, value);
                }
                Value::Unsigned(value) if u32::try_from(*value).is_ok() => {
                    header.extend(U32.to_le_bytes());
                    header.extend((*value as u32).to_le_bytes());
                }
                other => anyhow::bail!("{key}: {other:?} is not written"),
            }
        }
        let mut offset = 0u64;
        for tensor in &tensors {
            let sides = tensor.shape.len() as u32;
            ensure!(sides <= MOST_SIDES, "{} has {sides} sides", tensor.name);
            text(&mut header, &tensor.name);
            header.extend(sides.to_le_bytes());
            for side in tensor.shape.iter().rev() {
                header.extend((*side as u64).to_le_bytes());
            }
            header.extend(tensor.kind.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += tensor.bytes()?.next_multiple_of(DEFAULT_ALIGNMENT);
        }
        pad(&mut header);
        let mut file = TempFile::of(path)?;
        file.write(&header)?;
        let awaited = tensors.into_iter().rev().collect();
        Ok(Self { file, awaited })
    }

    /// Writes the blocks of the next tensor.
    ///
    /// # Errors
    /// Fails for another one, and if it cannot be written.
    pub fn write(&mut self, name: &str, mut blocks: Vec<u8>) -> anyhow::Result<()> {
        let next = self.awaited.pop();
        match &next {
            Some(next) if next.name == name && next.bytes()? == blocks.len() as u64 => {}
            _ => anyhow::bail!("{name}, {} bytes, comes where {next:?} is planned", blocks.len()),
        }
        pad(&mut blocks);
        Ok(self.file.write(&blocks)?)
    }

    /// Keeps the file under its name.
    ///
    /// # Errors
    /// Fails if a tensor is missing, and if it cannot be written.
    pub fn finish(self) -> anyhow::Result<()> {
        if let Some(missing) = self.awaited.last() {
            anyhow::bail!("the tensor {} was planned, but not written", missing.name);
        }
        Ok(self.file.keep()?)
    }
}

fn text(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
}
