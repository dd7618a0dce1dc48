//! A safetensors file that is written tensor by tensor, in any order.
//!
//! Sizes are planned first, so the file's layout is known: wide numbers before narrow ones, so that every tensor starts
//! aligned, each by name. Texts, whose length shows when they are written, come last; the header is written at the end,
//! in the room that the longest texts would need, and filled up with spaces, as the format allows.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::storage::layout::TensorSpec;
use crate::disk::TempFile;

/// Bytes of a header's length.
const LENGTH: usize = 8;

/// A file that is being written.
pub struct SafetensorsWriter {
    file: TempFile,
    metadata: Value,
    /// Bytes of the header, padded.
    room: usize,
    /// Tensors of numbers, by name: where each begins behind the header, and whether it was written.
    planned: BTreeMap<String, Place>,
    /// Names in the order of the file.
    order: Vec<String>,
    /// End of the numbers behind the header.
    end: u64,
    /// Texts that were written, and the planned ones.
    texts: BTreeMap<String, Vec<u8>>,
    awaited: Vec<TensorSpec>,
}

struct Place {
    spec: TensorSpec,
    start: u64,
    written: bool,
}

impl SafetensorsWriter {
    /// Creates the file with this metadata and these tensors.
    ///
    /// # Errors
    /// Fails if it cannot be written, and for two tensors of one name.
    pub fn create(path: &Path, metadata: &BTreeMap<String, String>, tensors: &[TensorSpec]) -> anyhow::Result<Self> {
        let (mut awaited, mut numbers): (Vec<_>, Vec<_>) = tensors.iter().cloned().partition(|spec| spec.text);
        awaited.sort_by(|a, b| a.name.cmp(&b.name));
        let width = |spec: &TensorSpec| std::cmp::Reverse(spec.dtype.bitsize());
        numbers.sort_by(|a, b| width(a).cmp(&width(b)).then_with(|| a.name.cmp(&b.name)));
        let mut writer = Self {
            file: TempFile::of(path)?,
            metadata: json!(metadata),
            room: 0,
            planned: BTreeMap::new(),
            order: numbers.iter().map(|spec| spec.name.clone()).collect(),
            end: 0,
            texts: BTreeMap::new(),
            awaited,
        };
        for spec in numbers {
            let (name, start) = (spec.name.clone(), writer.end);
            writer.end += spec.bytes();
            let place = Place {
                spec,
                start,
                written: false,
            };
            let twice = writer.planned.insert(name.clone(), place).is_some();
            ensure!(!twice, "the tensor {name} would be there twice");
        }
        let longest = writer.awaited.iter().map(|spec| (spec.name.as_str(), spec.bytes()));
        writer.room = writer.header(longest.collect()).len().next_multiple_of(LENGTH);
        Ok(writer)
    }

    /// Writes a tensor that was planned.
    ///
    /// # Errors
    /// Fails for a tensor that was not, and if it cannot be written.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        if self.awaited.iter().any(|spec| spec.name == name) {
            self.texts.insert(name.to_string(), bytes.to_vec());
            return Ok(());
        }
        let place = self.planned.get_mut(name);
        let place = place.with_context(|| format!("the tensor {name} was not planned"))?;
        ensure!(
            place.spec.bytes() == bytes.len() as u64,
            "the tensor {name} was planned with {} bytes, but has {}",
            place.spec.bytes(),
            bytes.len()
        );
        place.written = true;
        let behind = (LENGTH + self.room) as u64;
        Ok(self.file.write_at(behind + place.start, bytes)?)
    }

    /// Writes the texts and the header, and keeps the file under its name.
    ///
    /// # Errors
    /// Fails if a tensor is missing, and if it cannot be written.
    pub fn finish(mut self) -> anyhow::Result<()> {
        let planned = self.planned.values().filter(|place| !place.written);
        let missing = planned.map(|place| &place.spec.name);
        let texts = self.awaited.iter().map(|spec| &spec.name);
        let mut missing = missing.chain(texts.filter(|name| !self.texts.contains_key(*name)));
        if let Some(name) = missing.next() {
            anyhow::bail!("the tensor {name} was planned, but not written");
        }
        let lengths = self.texts.iter().map(|(name, text)| (name.as_str(), text.len() as u64));
        let mut header = self.header(lengths.collect());
        header.resize(self.room, b' ');
        let mut at = (LENGTH + self.room) as u64 + self.end;
        for text in self.texts.values() {
            self.file.write_at(at, text)?;
            at += text.len() as u64;
        }
        self.file.write_at(0, &(self.room as u64).to_le_bytes())?;
        self.file.write_at(LENGTH as u64, &header)?;
        Ok(self.file.keep()?)
    }

    /// Returns the header, with texts of these names and lengths.
    fn header(&self, texts: Vec<(&str, u64)>) -> Vec<u8> {
        let mut header = Map::from_iter([("__metadata__".to_string(), self.metadata.clone())]);
        let entry = |dtype: Dtype, shape: &[usize], start: u64, bytes: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [start, start + bytes]});
        for name in &self.order {
            let Place { spec, start, .. } = &self.planned[name];
            let entry = entry(spec.dtype, &spec.shape, *start, spec.bytes());
            header.insert(name.clone(), entry);
        }
        let mut at = self.end;
        for (name, length) in texts {
            header.insert(name.to_string(), entry(Dtype::U8, &[length as usize], at, length));
            at += length;
        }
        Value::Object(header).to_string().into_bytes()
    }
}

/// Returns the bytes of a file of these tensors, at most; without the header.
pub fn bytes(tensors: &[TensorSpec]) -> u64 {
    tensors.iter().fold(0, |all, spec| all.saturating_add(spec.bytes()))
}
