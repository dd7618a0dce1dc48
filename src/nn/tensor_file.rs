//! A file of tensors by name: safetensors, memory-mapped, or GGUF.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Error, Result, Tensor};
use safetensors::tensor::{Metadata, TensorView};

use super::gguf::{self, GgufFile};
use super::storage::detect;
use super::weight_files::unreadable;
use crate::finite::{self, NotFinite};
use crate::ops::bytes::Origin;

/// An open file of tensors.
pub enum TensorFile {
    /// Mapped safetensors, and where their first tensor begins.
    Safetensors(PathBuf, MmapedSafetensors, DataStart),
    /// GGUF.
    Gguf(GgufFile),
}

/// Beginning of the first tensor of a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct DataStart {
    /// In memory.
    address: usize,
    /// In the file.
    offset: u64,
}

impl TensorFile {
    /// Opens a file, and reads its header.
    ///
    /// # Errors
    /// Fails for a file that cannot be read or is of neither kind, with its name.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if is_gguf(path) {
            return Ok(Self::Gguf(GgufFile::open(path)?));
        }
        Self::open_safetensors(path)
    }

    /// Maps a file of safetensors, and reads its header.
    ///
    /// # Errors
    /// Fails for a file that cannot be read or is none, with its name.
    pub(super) fn open_safetensors(path: &Path) -> anyhow::Result<Self> {
        // SAFETY: the map is only read; as everywhere with mmap, a file must not shrink meanwhile.
        let file = unsafe { MmapedSafetensors::new(path) }.with_context(|| unreadable(path))?;
        let addresses = file.tensors().into_iter().map(|(_, view)| view.data().as_ptr().addr());
        let start = DataStart {
            address: addresses.min().unwrap_or_default(),
            offset: 8 + header_length(&mut File::open(path)?).with_context(|| unreadable(path))?,
        };
        Ok(Self::Safetensors(path.into(), file, start))
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Safetensors(path, ..) => path,
            Self::Gguf(file) => file.path(),
        }
    }

    /// Returns the names of all tensors.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Safetensors(_, file, _) => file.tensors().into_iter().map(|(name, _)| name).collect(),
            Self::Gguf(file) => file.header().tensors.keys().cloned().collect(),
        }
    }

    /// Returns the shape of a tensor.
    pub(super) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self {
            Self::Safetensors(_, file, _) => Some(file.get(name).ok()?.shape().to_vec()),
            Self::Gguf(file) => Some(file.header().tensors.get(name)?.shape.clone()),
        }
    }

    /// Returns true for a tensor of this shape.
    pub(super) fn has(&self, name: &str, shape: &[usize]) -> bool {
        match self {
            Self::Safetensors(_, file, _) => file.get(name).is_ok_and(|view| view.shape() == shape),
            Self::Gguf(file) => file.header().tensors.get(name).is_some_and(|entry| entry.is(shape)),
        }
    }

    /// Returns the bytes of a tensor in the file.
    pub(super) fn bytes(&self, name: &str) -> u64 {
        match self {
            Self::Safetensors(_, file, _) => file.get(name).map_or(0, |view| view.data().len() as u64),
            Self::Gguf(file) => file.header().tensors.get(name).map_or(0, |entry| entry.bytes as u64),
        }
    }

    /// Returns a tensor of safetensors as it lies there.
    pub(super) fn view(&self, name: &str) -> Result<TensorView<'_>> {
        match self {
            Self::Safetensors(_, file, _) => file.get(name),
            Self::Gguf(_) => Err(Error::Msg(format!("the tensor {name} is GGUF's"))),
        }
    }

    /// Returns where a tensor's bytes lie in the file.
    pub(super) fn origin(&self, name: &str) -> Option<Origin> {
        let offset = match self {
            Self::Safetensors(_, file, start) => {
                let address = file.get(name).ok()?.data().as_ptr().addr();
                start.offset + address.checked_sub(start.address)? as u64
            }
            Self::Gguf(file) => file.header().tensors.get(name)?.start,
        };
        let path = self.path().into();
        Some(Origin { path, offset })
    }

    /// Returns the number format of a dense tensor of safetensors.
    pub(super) fn dtype(&self, name: &str) -> Option<DType> {
        match self {
            Self::Safetensors(_, file, _) => DType::try_from(file.get(name).ok()?.dtype()).ok(),
            Self::Gguf(_) => None,
        }
    }

    /// Returns the GGUF file, if `name` is a matrix of blocks there.
    pub(super) fn blocks(&self, name: &str) -> Option<&GgufFile> {
        match self {
            Self::Gguf(file) if file.header().tensors.get(name)?.is_stored_matrix() => Some(file),
            _ => None,
        }
    }

    /// Reads a tensor, which [`has`](Self::has) this shape.
    pub(super) fn read(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        match self {
            Self::Safetensors(_, file, _) => {
                let tensor = file.load(name, device)?.to_dtype(dtype)?;
                self.unload(name);
                Ok(tensor)
            }
            Self::Gguf(file) => file
                .tensor(name, shape, dtype, device)
                .map_err(|error| Error::Msg(format!("{error:#}"))),
        }
    }

    /// Releases the mapped bytes of a tensor that was read: otherwise a process that reads a checkpoint comes to hold all
    /// of it next to its own tensors. They are read again on the next access.
    pub(super) fn unload(&self, name: &str) {
        if let Ok(view) = self.view(name) {
            // SAFETY: these bytes are a file's, mapped and never written.
            unsafe { unload(view.data()) };
        }
    }

    /// Reads the header of safetensors; GGUF has none of this kind.
    pub(super) fn headers(&self) -> anyhow::Result<detect::Headers> {
        let mut headers = detect::Headers::default();
        if let Self::Safetensors(path, ..) = self {
            headers.add(&header(path).with_context(|| unreadable(path))?);
        }
        Ok(headers)
    }

    /// Returns the first number of a tensor that is not finite.
    pub(super) fn not_finite(&self, name: &str) -> Option<NotFinite> {
        match self {
            Self::Safetensors(_, file, _) => {
                let view = file.get(name).ok()?;
                // None: in an unsupported format.
                finite::first_in(view.data(), DType::try_from(view.dtype()).ok()?)
            }
            Self::Gguf(file) => {
                let shape = file.header().tensors.get(name)?.shape.clone();
                let numbers = file.tensor(name, &shape, DType::F32, &Device::Cpu).ok()?;
                finite::first(&numbers).ok().flatten()
            }
        }
    }
}

/// Returns true for a file that is GGUF, or says so by its name.
pub fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    let named = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    named || (read.is_ok() && magic == gguf::MAGIC)
}

/// Reads the header of a file that is mapped, and so well formed.
fn header(path: &Path) -> anyhow::Result<Metadata> {
    let mut file = File::open(path)?;
    let length = header_length(&mut file)?;
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    Ok(serde_json::from_slice(&header)?)
}

/// Reads the length of a header, which comes before it.
fn header_length(file: &mut File) -> anyhow::Result<u64> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    Ok(u64::from_le_bytes(length))
}

/// Releases mapped bytes that were read.
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
