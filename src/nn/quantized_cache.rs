//! Cache of matrices that are stored in few bits while a dense checkpoint loads: the next start reads them.
//!
//! Matrices lie in `FOLDER/KEY/PATH.safetensors`, a file each, written whole. KEY is a hash of the content of the
//! checkpoint's files, of the form, and of the type that numbers are rounded to before, so nothing there is ever out of
//! date. Each file carries a digest; a damaged one is written anew. The cache only saves time: what cannot be written is
//! reported once.

mod folder;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};
use serde_json::json;

use super::storage::layout::{FileForm, TensorSpec};
use super::storage::quantize::Quantization;
use super::storage::{Parts, detect, ggml};
use crate::disk::hash_cache::HashCache;
use crate::disk::{space, write_whole};
use crate::ops::bytes::{Bytes, Origin};
use crate::ops::stored::StoredMatrix;

pub use folder::CacheFolder;

/// Version, incremented when the same key would mean other bytes.
const FORMAT: u32 = 1;

/// Tensor of a file: a hash of the others.
const DIGEST: &str = "digest";

/// A folder of matrices in few bits.
#[derive(Debug)]
pub struct QuantizedCache {
    folder: PathBuf,
    hashes: HashCache,
}

/// The matrices of one checkpoint in one form.
#[derive(Debug)]
pub struct CachedMatrices {
    folder: PathBuf,
    form: Quantization,
    dtype: DType,
    read: AtomicUsize,
    written: AtomicUsize,
    /// False once a matrix could not be written.
    writes: AtomicBool,
}

impl QuantizedCache {
    /// Cache in a folder, which need not exist.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.into(),
            hashes: HashCache::open(folder.join("known.json")),
        }
    }

    /// Returns the matrices of a checkpoint's files, which are hashed unless they are known; `bytes` are what all of them
    /// take. Without so much space nothing is written.
    ///
    /// # Errors
    /// Fails for files that cannot be read.
    pub fn matrices(
        &self,
        files: &[PathBuf],
        form: Quantization,
        dtype: DType,
        bytes: u64,
    ) -> anyhow::Result<CachedMatrices> {
        let mut hashes = Vec::new();
        for file in files {
            let hash = self.hashes.hash(file).with_context(|| file.display().to_string())?;
            hashes.push(hash.to_string());
        }
        if let Err(error) = self.hashes.save() {
            log::warn!("{error:#}; files will be hashed again");
        }
        let recipe = json!({"format": FORMAT, "files": hashes, "form": form.name(), "dtype": dtype.as_str()});
        let folder = self
            .folder
            .join(blake3::hash(recipe.to_string().as_bytes()).to_string());
        let space = space::ensure(&folder, bytes.saturating_sub(taken(&folder)), || {
            format!("the cache of weights in {}", form.name())
        });
        if let Err(error) = &space {
            log::warn!("{error}, or set model.quantization_cache; every start stores them again");
        }
        Ok(CachedMatrices {
            folder,
            form,
            dtype,
            read: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
            writes: AtomicBool::new(space.is_ok()),
        })
    }
}

impl CachedMatrices {
    /// Reads the matrix `path` of this shape; None if it is not there, or damaged.
    pub fn read(&self, path: &str, shape: (usize, usize), device: &Device) -> Option<Arc<dyn StoredMatrix>> {
        let file = self.file(path);
        let bytes = std::fs::read(&file).ok()?;
        let file = FileBytes {
            bytes: &bytes,
            path: Some(file.as_path().into()),
        };
        match self.matrix(path, &file, shape, device) {
            Ok(matrix) => {
                self.read.fetch_add(1, Ordering::Relaxed);
                Some(matrix)
            }
            Err(error) => {
                log::warn!("{}: {error:#}; it is made again", self.file(path).display());
                None
            }
        }
    }

    /// Stores a dense matrix, and writes it.
    ///
    /// # Errors
    /// Fails for NaN and infinities.
    pub fn store(&self, path: &str, dense: &Tensor, device: &Device) -> candle_core::Result<Arc<dyn StoredMatrix>> {
        let bytes = self.serialized(path, dense).map_err(failed)?;
        let mut file = FileBytes {
            bytes: &bytes,
            path: None,
        };
        if self.writes.load(Ordering::Relaxed) {
            let path = self.file(path);
            match write_whole(&path, &bytes) {
                Ok(()) => {
                    self.written.fetch_add(1, Ordering::Relaxed);
                    file.path = Some(path.into());
                }
                Err(error) => {
                    self.writes.store(false, Ordering::Relaxed);
                    log::warn!("{error}; no more of the weights are cached");
                }
            }
        }
        let matrix = self.matrix(path, &file, dense.dims2()?, device);
        matrix.map_err(failed)
    }

    /// Logs what was read and written.
    pub fn report(&self) {
        let (read, written) = (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed));
        let folder = self.folder.display();
        if read > 0 {
            log::info!("{read} matrices in {} read from {folder}", self.form.name());
        }
        if written > 0 {
            log::info!(
                "{written} matrices in {} written to {folder}, for the next start",
                self.form.name()
            );
        }
    }

    fn file(&self, path: &str) -> PathBuf {
        self.folder.join(format!("{path}.safetensors"))
    }

    fn serialized(&self, path: &str, dense: &Tensor) -> anyhow::Result<Vec<u8>> {
        let shape = dense.dims2()?;
        let (mut specs, parts, description) = match FileForm::of(self.form, true) {
            Some(form) => (
                form.parts(path, shape, self.dtype),
                form.store(dense, self.dtype)?.parts,
                form.description(shape.1, self.dtype),
            ),
            None => {
                let blocks = blocks(self.form, shape.1)?;
                let bytes = ggml::quantize(dense, blocks, &Device::Cpu)?.into_format().bytes;
                (
                    vec![TensorSpec::new(path, Dtype::U8, &[bytes.len()])],
                    vec![bytes.to_vec()],
                    None,
                )
            }
        };
        let mut tensors = Vec::new();
        for (spec, bytes) in specs.iter_mut().zip(&parts) {
            if spec.text {
                spec.shape = vec![bytes.len()];
            }
            tensors.push((
                spec.name.as_str(),
                TensorView::new(spec.dtype, spec.shape.clone(), bytes)?,
            ));
        }
        let digest = digest(&tensors);
        tensors.push((DIGEST, TensorView::new(Dtype::U8, vec![digest.len()], &digest)?));
        let metadata = description.map(|description| HashMap::from([(path.to_string(), description)]));
        Ok(safetensors::serialize(tensors, metadata)?)
    }

    /// Reads a matrix from its file.
    fn matrix(
        &self,
        path: &str,
        file: &FileBytes,
        shape: (usize, usize),
        device: &Device,
    ) -> anyhow::Result<Arc<dyn StoredMatrix>> {
        let (_, header): (usize, Metadata) = SafeTensors::read_metadata(file.bytes)?;
        let tensors = SafeTensors::deserialize(file.bytes)?;
        let parts = CachedParts {
            tensors: &tensors,
            file,
        };
        let tensors: Vec<_> = tensors.iter().filter(|(name, _)| *name != DIGEST).collect();
        ensure!(parts.part(DIGEST)?.data() == digest(&tensors), "is damaged");
        if FileForm::of(self.form, true).is_none() {
            let bytes = Bytes::from(parts.part(path)?.data().to_vec()).with_origin(parts.origin(path));
            return Ok(ggml::matrix(path, blocks(self.form, shape.1)?, bytes, shape, device)?.placed()?);
        }
        let mut headers = detect::Headers::default();
        headers.add(&header);
        let stored = headers.stored_forms(None)?;
        let form = stored.matrices.get(path).context("holds another matrix")?;
        Ok(form.read(&parts, path, shape, device)?)
    }
}

/// Bytes of a file, and its path once it is there.
struct FileBytes<'a> {
    bytes: &'a [u8],
    path: Option<Arc<Path>>,
}

/// Tensors of a file of the cache.
struct CachedParts<'a> {
    tensors: &'a SafeTensors<'a>,
    file: &'a FileBytes<'a>,
}

impl Parts for CachedParts<'_> {
    fn part(&self, name: &str) -> candle_core::Result<TensorView<'_>> {
        Ok(self.tensors.tensor(name)?)
    }

    fn origin(&self, name: &str) -> Option<Origin> {
        let address = self.part(name).ok()?.data().as_ptr().addr();
        let offset = address.checked_sub(self.file.bytes.as_ptr().addr())? as u64;
        let path = self.file.path.clone()?;
        Some(Origin { path, offset })
    }
}

/// Returns the type of GGML that a form has for rows of this many numbers.
fn blocks(form: Quantization, features: usize) -> anyhow::Result<ggml::GgmlType> {
    match form {
        Quantization::Ggml(kind) => Ok(kind.fallback(features)),
        other => anyhow::bail!("{} is no type of GGML", other.name()),
    }
}

/// Returns a hash of tensors, in the order of their names.
fn digest(tensors: &[(&str, TensorView)]) -> [u8; blake3::OUT_LEN] {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(name, _)| *name);
    let mut hasher = blake3::Hasher::new();
    for (name, tensor) in sorted {
        hasher.update(name.as_bytes());
        hasher.update(tensor.data());
    }
    *hasher.finalize().as_bytes()
}

/// Returns the bytes of the files in a folder.
fn taken(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let sizes = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
    sizes.sum()
}

fn failed(error: anyhow::Error) -> candle_core::Error {
    candle_core::Error::Msg(format!("{error:#}"))
}
