//! Safetensors of a checkpoint, memory-mapped: tensors by name, each read once. Matrices may be stored in few bits
//! ([`super::storage`]), each in several tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Error, Result, Shape, Tensor};

use safetensors::tensor::{Metadata, TensorView};
use serde_json::Value;

use super::storage::Parts;
use super::storage::detect::{self, StoredForm, StoredForms};
use super::weight_files::{WeightFiles, WeightFolder, unreadable};
use crate::diffusers_config as config;
use crate::finite;
use crate::ops::stored::StoredMatrix;
use crate::process::memory::{self, Limit, TooLittle};

/// Mapped files of a checkpoint, and the tensors that layers have read of them.
pub(super) struct Checkpoint {
    pub(super) folder: PathBuf,
    pub(super) files: Vec<(PathBuf, MmapedSafetensors)>,
    /// Index of the file that holds a tensor.
    pub(super) tensors: BTreeMap<String, usize>,
    /// Matrices in few bits.
    stored: StoredForms,
    /// Tensors that no layer has requested yet.
    pub(super) unread: Mutex<BTreeSet<String>>,
}

impl Checkpoint {
    pub(super) fn open(folder: &WeightFolder) -> anyhow::Result<Self> {
        let WeightFiles { paths, promised, .. } = folder.files()?;
        let sizes = paths
            .iter()
            .filter_map(|path| Some(std::fs::metadata(path).ok()?.len()));
        ensure_addresses(folder, sizes.sum())?;
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for path in paths {
            // SAFETY: the map is only read; as everywhere with mmap, a file must not shrink meanwhile.
            let file = unsafe { MmapedSafetensors::new(&path) }.with_context(|| unreadable(&path))?;
            for (name, _) in file.tensors() {
                tensors.insert(name, files.len());
            }
            files.push((path, file));
        }
        let missing: Vec<&String> = promised.iter().filter(|name| !tensors.contains_key(*name)).collect();
        ensure!(
            missing.is_empty(),
            "{}: the index lists {} tensors that no shard holds, first {}; fetch the shards again",
            folder.display(),
            missing.len(),
            missing[0]
        );
        let paths = files.iter().map(|(path, _)| path.as_path());
        let stored = stored_forms(folder, paths).with_context(|| folder.display().to_string())?;
        let mut unread: BTreeSet<String> = tensors.keys().cloned().collect();
        unread.retain(|name| !stored.markers.contains(name));
        Ok(Self {
            folder: folder.to_path_buf(),
            files,
            tensors,
            stored,
            unread: Mutex::new(unread),
        })
    }

    /// Returns the bytes of its tensors, dense ones in this type, without those whose names begin with one of `ignored`.
    pub(super) fn bytes(&self, ignored: &[&str], dtype: DType) -> u64 {
        let stored: BTreeSet<&String> = self.stored.matrices.values().flat_map(|form| &form.parts).collect();
        let tensors = self.files.iter().flat_map(|(_, file)| file.tensors());
        let wanted = tensors.filter(|(name, _)| !ignored.iter().any(|prefix| name.starts_with(prefix)));
        let sizes = wanted.map(|(name, view)| {
            if stored.contains(&name) {
                return view.data().len() as u64;
            }
            let sides = view.shape().iter();
            sides.fold(dtype.size_in_bytes() as u64, |all, &side| {
                all.saturating_mul(side as u64)
            })
        });
        sizes.fold(0, u64::saturating_add)
    }

    /// Returns true for a parameter of this name, dense or stored.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.is_stored(name)
    }

    /// Returns true for a matrix in few bits.
    pub(super) fn is_stored(&self, name: &str) -> bool {
        self.stored.matrices.contains_key(name)
    }

    /// Marks the parameter `name` as requested; false if there is none of this shape. The shape of a stored matrix shows
    /// when its numbers are read.
    pub(super) fn request(&self, name: &str, shape: &Shape) -> bool {
        match self.form(name) {
            Some(_) => shape.rank() == 2,
            None => self.find(name, shape).is_some(),
        }
    }

    /// Returns the form of a stored matrix, and marks its tensors as requested.
    fn form(&self, name: &str) -> Option<&StoredForm> {
        let form = self.stored.matrices.get(name)?;
        let mut unread = self.unread.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        form.parts.iter().for_each(|part| _ = unread.remove(part));
        Some(form)
    }

    /// Reads the matrix `name` in its stored form; None if it is dense.
    pub(super) fn stored(
        &self,
        name: &str,
        shape: (usize, usize),
        device: &Device,
    ) -> Result<Option<Arc<dyn StoredMatrix>>> {
        let Some(form) = self.form(name) else {
            return Ok(None);
        };
        let read = form.read(self, name, shape, device);
        for part in form.parts.iter().filter_map(|part| self.part(part).ok()) {
            // SAFETY: these bytes are a file's, mapped and never written.
            unsafe { unload(part.data()) };
        }
        let read = read.map(Some);
        read.map_err(|error| Error::Msg(format!("{}: reading the matrix {name}: {error}", self.folder.display())))
    }

    /// Returns the file with a tensor of this name and shape, and marks it as requested.
    pub(super) fn find(&self, name: &str, shape: &Shape) -> Option<&(PathBuf, MmapedSafetensors)> {
        let file = &self.files[*self.tensors.get(name)?];
        self.unread
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .remove(name);
        (file.1.get(name).ok()?.shape() == shape.dims()).then_some(file)
    }

    /// Explains why there is no tensor of this name and shape.
    pub(super) fn complaint(&self, name: &str, shape: &Shape) -> String {
        let file = self.tensors.get(name).map(|file| &self.files[*file]);
        if let Some((path, view)) = file.and_then(|(path, file)| Some((path, file.get(name).ok()?))) {
            return format!(
                "{}: the tensor {name} should be {:?} by config.json, but is {:?}",
                path.display(),
                shape.dims(),
                view.shape()
            );
        }
        let near = self
            .tensors
            .keys()
            .max_by(|a, b| strsim::normalized_levenshtein(a, name).total_cmp(&strsim::normalized_levenshtein(b, name)));
        let near = near.map_or(String::new(), |near| format!("; the nearest name is {near}"));
        format!(
            "{}: the tensor {name} {:?} is missing{near}",
            self.folder.display(),
            shape.dims()
        )
    }

    pub(super) fn read(&self, name: &str, shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        if let &[rows, columns] = shape.dims()
            && let Some(stored) = self.stored(name, (rows, columns), device)?
        {
            return stored.rows(0..rows, dtype);
        }
        let Some((path, file)) = self.find(name, shape) else {
            return Err(Error::Msg(self.complaint(name, shape)));
        };
        let view = file.get(name)?;
        let tensor = file
            .load(name, device)
            .and_then(|tensor| tensor.to_dtype(dtype))
            .map_err(|error| Error::Msg(format!("{}: reading the tensor {name}: {error}", path.display())))?;
        // SAFETY: these bytes are a file's, mapped and never written.
        unsafe { unload(view.data()) };
        Ok(tensor)
    }
}

impl Parts for Checkpoint {
    fn part(&self, name: &str) -> Result<TensorView<'_>> {
        match self.tensors.get(name) {
            Some(file) => self.files[*file].1.get(name),
            None => Err(Error::Msg(format!("the tensor {name} is missing"))),
        }
    }
}

/// Finds the matrices in few bits by the headers of the files and the config beside them.
fn stored_forms<'a>(folder: &Path, files: impl Iterator<Item = &'a Path>) -> anyhow::Result<StoredForms> {
    let mut headers = detect::Headers::default();
    for path in files {
        headers.add(&header(path).with_context(|| unreadable(path))?);
    }
    let path = folder.join("config.json");
    let config = path.exists().then(|| config::text(&path)).transpose()?;
    // A config that cannot be read is told of where it is needed.
    let config: Option<Value> = config.and_then(|text| serde_json::from_str(&text).ok());
    headers.stored_forms(config.as_ref().and_then(|config| config.get("quantization_config")))
}

/// Reads the header of a file that is mapped, and so well formed.
fn header(path: &Path) -> anyhow::Result<Metadata> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
    Ok(serde_json::from_slice(&header)?)
}

/// Checks that files of this total size can be mapped.
fn ensure_addresses(folder: &WeightFolder, needed: u64) -> std::result::Result<(), TooLittle> {
    match memory::most() {
        Some(free) if free.limit == Limit::AddressSpace && free.bytes < needed => Err(TooLittle {
            what: format!("{}, which is mapped,", folder.display()),
            needed,
            free,
            instead: None,
        }),
        _ => Ok(()),
    }
}

/// Releases mapped bytes that were read: otherwise a process that reads a checkpoint comes to hold all of it next to
/// its own tensors. They are read again on the next access.
///
/// # Safety
/// `bytes` must be in a map of a file that nobody writes to.
#[cfg(target_os = "linux")]
unsafe fn unload(bytes: &[u8]) {
    // SAFETY: only returns a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    // Pages shared with other tensors are kept.
    let start = bytes.as_ptr().align_offset(page);
    let length = bytes.len().saturating_sub(start) / page * page;
    if length > 0 {
        let pages = bytes[start..start + length].as_ptr();
        // SAFETY: by the caller's guarantee the pages are filled from the file when they are needed again.
        unsafe { libc::madvise(pages.cast_mut().cast(), length, libc::MADV_DONTNEED) };
    }
}

#[cfg(not(target_os = "linux"))]
unsafe fn unload(_bytes: &[u8]) {}

/// Returns the first non-finite tensor in `folder`, by file, name and index; None if all are finite. Reads all of them:
/// for the search of a non-finite result's cause.
///
/// # Errors
/// Same as [`super::Weights::open`].
pub fn not_finite(folder: impl Into<WeightFolder>) -> anyhow::Result<Option<String>> {
    let checkpoint = Checkpoint::open(&folder.into())?;
    for (path, file) in &checkpoint.files {
        for (name, view) in file.tensors() {
            let Ok(dtype) = DType::try_from(view.dtype()) else {
                continue; // in an unsupported format
            };
            if let Some(first) = finite::first_in(view.data(), dtype) {
                return Ok(Some(format!("{}: the tensor {name} holds {first}", path.display())));
            }
        }
    }
    Ok(None)
}
