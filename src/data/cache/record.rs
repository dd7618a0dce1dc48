//! One file of the cache: safetensors with a digest of its tensors in the header, written whole or not at all.

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

use crate::disk::{self, Beside};
use crate::finite;

/// The key of the digest in the header.
const DIGEST: &str = "digest";
/// No header is larger.
const MAX_HEADER: u64 = 1 << 20;

/// Bytes that most headers stay below.
pub const USUAL_HEADER: u64 = 2048;

/// What a record must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    pub dtype: DType,
    /// Names and shapes.
    pub tensors: Vec<(&'static str, Vec<usize>)>,
}

/// Why a record cannot be used.
#[derive(Debug)]
pub enum Fault {
    Missing,
    Unreadable(io::Error),
    Damaged(String),
}

impl Form {
    /// A clip's record: its posterior, (C, f, h, w) twice, and what a family keeps of its first frame.
    pub fn clip(shape: [usize; 4], image: Vec<(&'static str, Vec<usize>)>) -> Self {
        let mut tensors = vec![("mean", shape.to_vec()), ("logvar", shape.to_vec())];
        tensors.extend(image);
        Self {
            dtype: DType::F32,
            tensors,
        }
    }

    /// A caption's record: its embedding (L, D), and its mask (L) where the family has one.
    pub fn caption(tensors: Vec<(&'static str, Vec<usize>)>, dtype: DType) -> Self {
        Self { dtype, tensors }
    }

    /// Whether these are its tensors, in order, and no others.
    ///
    /// # Errors
    /// A shape that the record must not have: parts of the checkpoint do not go together. A number that is none
    /// ([`finite::Held`]).
    pub fn check(&self, tensors: &[Tensor]) -> anyhow::Result<()> {
        anyhow::ensure!(
            tensors.len() == self.tensors.len(),
            "it is {} tensors, and {} belong in its record",
            tensors.len(),
            self.tensors.len()
        );
        for ((name, shape), tensor) in self.tensors.iter().zip(tensors) {
            anyhow::ensure!(
                tensor.dims() == shape,
                "its {name} is {:?}, where the transformer takes {shape:?}: the model's parts do not belong together",
                tensor.dims()
            );
            finite::check(&format!("its {name}"), tensor)?;
        }
        Ok(())
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        let values: usize = self
            .tensors
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        (values * self.dtype.size_in_bytes()) as u64
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing => write!(f, "is not there"),
            Fault::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Fault::Damaged(what) => write!(f, "is damaged: {what}"),
        }
    }
}

/// Writes a record of this form, with notes for people in its header; the hash of its content. A whole record that is
/// there already stays: another process may have been quicker, and somebody may be reading it.
pub fn write(path: &Path, form: &Form, tensors: &[Tensor], notes: &[(&str, String)]) -> anyhow::Result<Hash> {
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
        .map(|(key, note)| (key.to_string(), note.clone()))
        .collect();
    header.insert(DIGEST.into(), digest.to_string());
    let bytes = safetensors::serialize(named, Some(header)).with_context(shown)?;
    disk::patiently(|| {
        let mut beside = Beside::of(path)?;
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

/// Reads a record that must be of this form; its tensors in the form's order, and the digest they were written with.
pub fn read(path: &Path, form: &Form) -> Result<(Vec<Tensor>, Hash), Fault> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Fault::Missing,
        _ => Fault::Unreadable(error),
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    let most = form.bytes() + MAX_HEADER;
    if !(form.bytes()..=most).contains(&size) {
        return Err(Fault::Damaged(format!(
            "it has {size} bytes, and {} or little more are expected",
            form.bytes()
        )));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    parse(&bytes, form).map_err(|error| Fault::Damaged(format!("{error:#}")))
}

fn parse(bytes: &[u8], form: &Form) -> anyhow::Result<(Vec<Tensor>, Hash)> {
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
            "{name} is {:?} {:?}, and {} {shape:?} is expected",
            view.dtype(),
            view.shape(),
            form.dtype.as_str()
        );
        views.push((*name, view));
    }
    let found = digest(views.iter().map(|(name, view)| (*name, view)));
    anyhow::ensure!(found == written, "its content is not what was written");
    // What was written elsewhere, or before this was looked at.
    for (name, view) in &views {
        if let Some(first) = finite::first_in(view.data(), form.dtype) {
            anyhow::bail!("its {name} holds {first}");
        }
    }
    let tensors = views.iter().map(|(_, view)| view.load(&Device::Cpu));
    Ok((tensors.collect::<candle_core::Result<_>>()?, found))
}

/// The hash of tensors' names, types, shapes and numbers.
fn digest<'a, V: View + 'a>(tensors: impl Iterator<Item = (&'a str, &'a V)>) -> Hash {
    let mut hasher = Hasher::new();
    for (name, tensor) in tensors {
        let head = format!("{name} {:?} {:?}\n", tensor.dtype(), tensor.shape());
        hasher.update(head.as_bytes());
        hasher.update(&tensor.data());
    }
    hasher.finalize()
}
