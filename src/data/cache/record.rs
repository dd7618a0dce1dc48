//! One file of the cache: safetensors with a digest of its tensors in the header, written atomically.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;

use anyhow::Context;
use blake3::{Hash, Hasher};
use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::View;

use crate::disk::{self, TempFile};
use crate::finite;

/// Key of the digest in the header.
const DIGEST: &str = "digest";
/// Upper limit for a header.
const MAX_HEADER: u64 = 1 << 20;
/// Limit for the characters of a note.
const LONGEST_NOTE: usize = 1000;

/// Size in bytes that headers rarely exceed.
pub const USUAL_HEADER: u64 = 2048;

/// Schema of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSchema {
    /// Number format of all tensors.
    pub dtype: DType,
    /// Names and shapes of the tensors.
    pub tensors: Vec<(&'static str, Vec<usize>)>,
}

/// Reasons why a record cannot be used.
#[derive(Debug)]
pub enum RecordError {
    Missing,
    Unreadable(io::Error),
    Damaged(String),
}

impl RecordSchema {
    /// Schema of a clip's record: its posterior, (C, f, h, w) twice, and the family's first-frame tensors.
    pub fn clip(shape: [usize; 4], image: Vec<(&'static str, Vec<usize>)>) -> Self {
        let mut tensors = vec![("mean", shape.to_vec()), ("logvar", shape.to_vec())];
        tensors.extend(image);
        Self {
            dtype: DType::F32,
            tensors,
        }
    }

    /// Schema of a caption's record: its embedding (L, D), and its mask (L) if the family has one.
    pub fn caption(tensors: Vec<(&'static str, Vec<usize>)>, dtype: DType) -> Self {
        Self { dtype, tensors }
    }

    /// Checks that these are its tensors, in order.
    ///
    /// # Errors
    /// Fails for a shape that the schema does not have, which means that parts of the checkpoint do not match, and for
    /// NaN or infinite values ([`finite::NonfiniteTensor`]).
    pub fn check(&self, tensors: &[Tensor]) -> anyhow::Result<()> {
        anyhow::ensure!(
            tensors.len() == self.tensors.len(),
            "it is {} tensors, but its record needs {}",
            tensors.len(),
            self.tensors.len()
        );
        for ((name, shape), tensor) in self.tensors.iter().zip(tensors) {
            anyhow::ensure!(
                tensor.dims() == shape,
                "its {name} is {:?}, where the transformer takes {shape:?}: the model's parts do not match",
                tensor.dims()
            );
            finite::check(&format!("its {name}"), tensor)?;
        }
        Ok(())
    }

    /// Returns the bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        let values: usize = self
            .tensors
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        (values * self.dtype.size_in_bytes()) as u64
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::Missing => write!(f, "does not exist"),
            RecordError::Unreadable(error) => write!(f, "cannot be read: {error}"),
            RecordError::Damaged(what) => write!(f, "is damaged: {what}"),
        }
    }
}

/// Writes a record of this schema, with notes for readers in its header, shortened, and returns its digest. An existing whole
/// record is kept: another process may have been quicker, and a reader may be using it.
pub fn write(path: &Path, form: &RecordSchema, tensors: &[Tensor], notes: &[(&str, String)]) -> anyhow::Result<Hash> {
    let names = form.tensors.iter().map(|(name, _)| *name);
    let shown = || path.display().to_string();
    let named: Vec<(&str, Tensor)> = names
        .zip(tensors)
        .map(|(name, tensor)| {
            let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(form.dtype)?.contiguous()?;
            Ok((name, tensor))
        })
        .collect::<candle_core::Result<_>>()
        .with_context(shown)?;
    let digest = digest(named.iter().map(|(name, tensor)| (*name, tensor)));
    let mut header: HashMap<String, String> = notes
        .iter()
        .map(|(key, note)| (key.to_string(), note.chars().take(LONGEST_NOTE).collect()))
        .collect();
    header.insert(DIGEST.into(), digest.to_string());
    let bytes = safetensors::serialize(named, Some(header)).with_context(shown)?;
    disk::with_retries(|| {
        let mut beside = TempFile::of(path)?;
        beside.write(&bytes)?;
        let Some(beside) = beside.keep_new()? else {
            return Ok(digest);
        };
        match read(path, form) {
            Ok((_, digest)) => Ok(digest),
            Err(_) => beside.keep().map(|()| digest),
        }
    })
    .map_err(anyhow::Error::from)
}

/// Reads a record of this schema; returns its tensors in the schema's order, and their digest.
pub fn read(path: &Path, form: &RecordSchema) -> Result<(Vec<Tensor>, Hash), RecordError> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => RecordError::Missing,
        _ => RecordError::Unreadable(error),
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    let most = form.bytes() + MAX_HEADER;
    if !(form.bytes()..=most).contains(&size) {
        return Err(RecordError::Damaged(format!(
            "it has {size} bytes, but about {} are expected",
            form.bytes()
        )));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    parse(&bytes, form).map_err(|error| RecordError::Damaged(format!("{error:#}")))
}

fn parse(bytes: &[u8], form: &RecordSchema) -> anyhow::Result<(Vec<Tensor>, Hash)> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let written = header.metadata().as_ref().and_then(|notes| notes.get(DIGEST));
    let written = Hash::from_hex(written.context("its header has no digest")?)?;
    let file = SafeTensors::deserialize(bytes)?;
    anyhow::ensure!(file.len() == form.tensors.len(), "it has {} tensors", file.len());
    let mut views = Vec::new();
    for (name, shape) in &form.tensors {
        let view = file.tensor(name)?;
        anyhow::ensure!(
            view.shape() == shape && DType::try_from(view.dtype())? == form.dtype,
            "{name} is {:?} {:?}, but {} {shape:?} is expected",
            view.dtype(),
            view.shape(),
            form.dtype.as_str()
        );
        views.push((*name, view));
    }
    let found = digest(views.iter().map(|(name, view)| (*name, view)));
    anyhow::ensure!(found == written, "its content is not what was written");
    // Checks records written elsewhere, or before this was checked at writing.
    for (name, view) in &views {
        if let Some(first) = finite::first_in(view.data(), form.dtype) {
            anyhow::bail!("its {name} holds {first}");
        }
    }
    let tensors = views.iter().map(|(_, view)| view.load(&Device::Cpu));
    Ok((tensors.collect::<candle_core::Result<_>>()?, found))
}

/// Returns the hash of tensors' names, types, shapes and values.
fn digest<'a, V: View + 'a>(tensors: impl Iterator<Item = (&'a str, &'a V)>) -> Hash {
    let mut hasher = Hasher::new();
    for (name, tensor) in tensors {
        let head = format!("{name} {:?} {:?}\n", tensor.dtype(), tensor.shape());
        hasher.update(head.as_bytes());
        hasher.update(&tensor.data());
    }
    hasher.finalize()
}
