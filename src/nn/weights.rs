//! A folder of safetensors ([`WeightFolder`]) as a tree of named tensors.
//!
//! Files are memory-mapped; a tensor is copied and cast when a layer requests it, so host memory holds only what is in
//! use. Every error names the file, the tensor, what was expected and what was found.
//!
//! ```
//! use std::collections::HashMap;
//!
//! use candle_core::{DType, Device, Tensor};
//! use vtrain::nn::Weights;
//!
//! let folder = tempfile::tempdir()?;
//! let weight = Tensor::ones((3, 4), DType::F32, &Device::Cpu)?;
//! let tensors = HashMap::from([("proj.weight", weight)]);
//! candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors"))?;
//!
//! let weights = Weights::open(folder.path(), DType::F32, &Device::Cpu)?;
//! assert_eq!(weights.pp("proj").get((3, 4), "weight")?.dims(), [3, 4]);
//! // Another shape is an error that names the file, the tensor and both shapes.
//! let error = weights.pp("proj").get((4, 3), "weight").unwrap_err().to_string();
//! assert!(error.contains("proj.weight") && error.contains("[3, 4]"), "{error}");
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail, ensure};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use indicatif::BinaryBytes;

mod headers;

pub use headers::{Content, Reading};

use headers::Headers;

use super::adapter::{Adapt, LoraLayer};
use super::random_weights;
use super::shards::{Matrix, Residency, Shards};
use super::weight_files::{WeightFiles, WeightFolder, unreadable};
use crate::finite;
use crate::process::memory::{self, Limit, TooLittle};

/// Number of mismatched tensors that are named.
const SHOWN: usize = 8;

/// A position in a checkpoint: layers read their tensors below it.
#[derive(Clone)]
pub struct Weights {
    source: WeightSource,
    prefix: String,
    dtype: DType,
    device: Device,
    adapt: Option<Arc<dyn Adapt>>,
    shards: Option<Arc<Shards>>,
    /// True inside of a sharded block.
    in_block: bool,
    /// True if the CPU computes like other devices.
    composed: bool,
    /// Numbers that layers have read so far.
    taken: Arc<AtomicUsize>,
}

/// Source of tensors.
#[derive(Clone)]
enum WeightSource {
    Checkpoint(Arc<Checkpoint>),
    Headers(Arc<Headers>),
    Random,
}

struct Checkpoint {
    folder: PathBuf,
    files: Vec<(PathBuf, MmapedSafetensors)>,
    /// Index of the file that holds a tensor.
    tensors: BTreeMap<String, usize>,
    /// Tensors that no layer has requested yet.
    unread: Mutex<BTreeSet<String>>,
}

impl Weights {
    /// Maps the checkpoint in `folder`, to be read as `dtype` on `device`.
    ///
    /// # Errors
    /// Fails without safetensors, for a shard in the index that is missing or lacks its tensors, and for a malformed
    /// header.
    pub fn open(folder: impl Into<WeightFolder>, dtype: DType, device: &Device) -> anyhow::Result<Self> {
        Self::read(&folder.into(), &Reading::numbers(dtype, device))
    }

    /// Maps the checkpoint in `folder`, to be read according to `reading`. With headers alone, every requested tensor
    /// is replaced by one number, on the CPU; mismatches are reported by [`finish`](Self::finish), all at once.
    ///
    /// # Errors
    /// Same as [`open`](Self::open).
    pub fn read(folder: &WeightFolder, reading: &Reading) -> anyhow::Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let (source, device) = match reading.content {
            Content::Numbers => (WeightSource::Checkpoint(Arc::new(checkpoint)), reading.device.clone()),
            Content::Headers => {
                let headers = Headers::of(checkpoint, reading.device.is_cpu());
                (WeightSource::Headers(Arc::new(headers)), Device::Cpu)
            }
        };
        Ok(Self::of(source, reading.dtype, device))
    }

    /// Random weights without a checkpoint, always the same for the same name. For benchmarks.
    pub fn random(dtype: DType, device: &Device) -> Self {
        Self::of(WeightSource::Random, dtype, device.clone())
    }

    fn of(source: WeightSource, dtype: DType, device: Device) -> Self {
        Self {
            source,
            prefix: String::new(),
            dtype,
            device,
            adapt: None,
            shards: None,
            in_block: false,
            composed: false,
            taken: Arc::default(),
        }
    }

    /// Sets the adapters of linear layers and the storage of blocks to those of `adapt`.
    pub fn with_adapt(mut self, adapt: Arc<dyn Adapt>) -> Self {
        self.shards = match adapt.residency() {
            Residency::Shared(ranks) if self.has_numbers() => Some(Arc::new(Shards::new(ranks))),
            _ => None,
        };
        self.adapt = Some(adapt);
        self
    }

    /// Makes autoencoders on the CPU compute as on other devices: in the weights' own type, with convolutions composed
    /// of candle's. Far slower; it shows the effect of a GPU's types on a machine without one.
    pub fn with_reference_ops(mut self) -> Self {
        self.composed = true;
        self
    }

    /// Returns true if autoencoders compute in f32, by the kernels for the CPU.
    pub fn takes_cpu_kernels(&self) -> bool {
        self.device.is_cpu() && !self.composed
    }

    /// Returns the position `name` below this one.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self {
            prefix: self.path(&name.to_string()),
            ..self.clone()
        }
    }

    /// Reads block `index` below this position by `build`; for sharded blocks this rank keeps its part.
    pub fn block<B>(&self, index: usize, build: impl FnOnce(Self) -> Result<B>) -> Result<B> {
        let Some(shards) = &self.shards else {
            return build(self.pp(index));
        };
        let inside = Self {
            in_block: true,
            ..self.pp(index)
        };
        let block = build(inside)?;
        shards.share_out()?;
        Ok(block)
    }

    /// Returns the sharded blocks.
    pub fn shards(&self) -> Option<Arc<Shards>> {
        self.shards.clone()
    }

    /// Returns the same position, read as `dtype`.
    pub fn to_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// Number format that tensors are read in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Device that tensors are read to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the path of this position, as in checkpoints.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns true if tensors hold the checkpoint's numbers. With headers alone, a layer must not rearrange its
    /// tensors: that would fill memory with copies of one number.
    pub fn has_numbers(&self) -> bool {
        !matches!(self.source, WeightSource::Headers(_))
    }

    fn checkpoint(&self) -> Option<&Checkpoint> {
        match &self.source {
            WeightSource::Checkpoint(checkpoint) => Some(checkpoint),
            WeightSource::Headers(headers) => Some(&headers.checkpoint),
            WeightSource::Random => None,
        }
    }

    /// Checks that the checkpoint has `name` here.
    pub fn contains(&self, name: &str) -> bool {
        let path = self.path(name);
        self.checkpoint()
            .is_none_or(|checkpoint| checkpoint.tensors.contains_key(&path))
    }

    /// Checks that main memory is large enough for all tensors except those whose names begin with one of `ignored`, or
    /// for this rank's part of them. On another device they only pass through.
    ///
    /// # Errors
    /// [`TooLittle`]: the needed and the free bytes, and the number format that would fit.
    pub fn ensure_memory(&self, ignored: &[&str]) -> std::result::Result<(), TooLittle> {
        let in_memory = match &self.source {
            WeightSource::Headers(headers) => headers.in_memory,
            _ => self.device.is_cpu(),
        };
        let (Some(checkpoint), true) = (self.checkpoint(), in_memory) else {
            return Ok(());
        };
        let ranks = self.adapt.as_ref().map_or(1, |adapt| adapt.residency().ranks());
        let numbers = checkpoint.numbers(ignored) / ranks as u64;
        let bytes = |dtype: DType| numbers.saturating_mul(dtype.size_in_bytes() as u64);
        let needed = bytes(self.dtype);
        match memory::most() {
            Some(free) if free.bytes < needed => Err(TooLittle {
                what: format!("{} as {}", checkpoint.folder.display(), self.dtype.as_str()),
                needed,
                free,
                instead: (bytes(DType::BF16) < free.bytes.min(needed)).then(|| {
                    format!(
                        "model.dtype: bf16 takes {}, which fits",
                        BinaryBytes(bytes(DType::BF16))
                    )
                }),
            }),
            _ => Ok(()),
        }
    }

    /// Reads the tensor `name`, which must have this shape.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        let (path, shape) = (self.path(name), shape.into());
        self.taken.fetch_add(shape.elem_count(), Ordering::Relaxed);
        let read = |dtype, device: &Device| match &self.source {
            WeightSource::Checkpoint(checkpoint) => checkpoint.read(&path, &shape, dtype, device),
            WeightSource::Headers(headers) => headers.stand_in(&path, &shape, dtype),
            WeightSource::Random => random_weights::tensor(&path, &shape, dtype, device),
        };
        let delta = self.adapt.as_ref().map(|adapt| adapt.delta(&path, &shape));
        match delta.transpose()?.flatten().filter(|_| self.has_numbers()) {
            None => read(self.dtype, &self.device),
            // Rounded once, like a merged checkpoint.
            Some(delta) => (read(DType::F32, &Device::Cpu)? + delta)?
                .to_dtype(self.dtype)?
                .to_device(&self.device),
        }
    }

    /// Reads the matrix `name`, which must have this shape.
    pub fn matrix(&self, shape: (usize, usize), name: &str) -> Result<Matrix> {
        let whole = self.get(shape, name)?;
        Ok(match &self.shards {
            Some(shards) if self.in_block => shards.take(whole),
            _ => Matrix::Own(whole),
        })
    }

    /// Returns how many numbers layers have read from these weights, at any position.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Returns the adapters of the linear layer at this position.
    pub fn adapters(&self, in_features: usize, out_features: usize) -> Result<Vec<LoraLayer>> {
        match &self.adapt {
            Some(adapt) => adapt.adapt(&self.prefix, in_features, out_features),
            None => Ok(Vec::new()),
        }
    }

    /// Fails if there are tensors that no layer has requested, or, with headers alone, requests that failed: to be
    /// called once a model is built.
    ///
    /// `ignored` are prefixes that are known to have no part in the computation.
    pub fn finish(&self, ignored: &[&str]) -> anyhow::Result<()> {
        let misfits = match &self.source {
            WeightSource::Headers(headers) => headers.misfits(),
            _ => None,
        };
        match (misfits, self.unread(ignored)) {
            (None, Ok(())) => Ok(()),
            (None, unread) => unread,
            (Some(misfits), Ok(())) => bail!(misfits),
            (Some(misfits), Err(unread)) => bail!("{misfits}\n{unread}"),
        }
    }

    fn unread(&self, ignored: &[&str]) -> anyhow::Result<()> {
        let Some(checkpoint) = self.checkpoint() else {
            return Ok(());
        };
        let unread = checkpoint
            .unread
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let extra: Vec<&str> = unread
            .iter()
            .map(String::as_str)
            .filter(|name| !ignored.iter().any(|p| name.starts_with(p)))
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        let shown = extra.iter().take(SHOWN).map(|name| {
            format!(
                "\n  {name} in {}",
                checkpoint.files[checkpoint.tensors[*name]].0.display()
            )
        });
        bail!(
            "{}: {} tensors have no place in this model; its config.json and its weights do not match:{}{}",
            checkpoint.folder.display(),
            extra.len(),
            shown.collect::<String>(),
            if extra.len() > SHOWN { "\n  ..." } else { "" }
        )
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }
}

impl Checkpoint {
    fn open(folder: &WeightFolder) -> anyhow::Result<Self> {
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
        let unread = Mutex::new(tensors.keys().cloned().collect());
        Ok(Self {
            folder: folder.to_path_buf(),
            files,
            tensors,
            unread,
        })
    }

    /// Returns its number of elements, without tensors whose names begin with one of `ignored`.
    fn numbers(&self, ignored: &[&str]) -> u64 {
        let tensors = self.files.iter().flat_map(|(_, file)| file.tensors());
        let wanted = tensors.filter(|(name, _)| !ignored.iter().any(|prefix| name.starts_with(prefix)));
        let sizes = wanted.map(|(_, view)| {
            view.shape()
                .iter()
                .fold(1, |all: u64, &side| all.saturating_mul(side as u64))
        });
        sizes.fold(0, u64::saturating_add)
    }

    /// Returns the file with a tensor of this name and shape, and marks it as requested.
    fn find(&self, name: &str, shape: &Shape) -> Option<&(PathBuf, MmapedSafetensors)> {
        let file = &self.files[*self.tensors.get(name)?];
        self.unread
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .remove(name);
        (file.1.get(name).ok()?.shape() == shape.dims()).then_some(file)
    }

    /// Explains why there is no tensor of this name and shape.
    fn complaint(&self, name: &str, shape: &Shape) -> String {
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

    fn read(&self, name: &str, shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
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
/// Same as [`Weights::open`].
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
