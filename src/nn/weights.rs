//! A folder of safetensors ([`WeightFolder`]) as a tree of named tensors.
//!
//! Files are mapped, not read; a tensor is copied and cast when a layer asks for it, so host memory holds what
//! is in use and nothing more. Every complaint names the file, the tensor, what was expected and what was found.

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

use super::linear::LowRank;
use super::made_up;
use super::shards::{Matrix, Residency, Shards};
use super::weight_files::{WeightFiles, WeightFolder, unreadable};
use crate::finite;
use crate::process::memory::{self, Limit, TooLittle};

/// Tensors that do not fit are named up to so many.
const SHOWN: usize = 8;

/// A place in a checkpoint: layers read their tensors below it.
#[derive(Clone)]
pub struct Weights {
    source: Source,
    prefix: String,
    dtype: DType,
    device: Device,
    planter: Option<Arc<dyn Planter>>,
    shards: Option<Arc<Shards>>,
    /// Whether this is inside one of the blocks that are shared out.
    in_block: bool,
    /// Whether the CPU computes as other devices do.
    composed: bool,
    /// Numbers that layers have taken so far.
    taken: Arc<AtomicUsize>,
}

/// What a model that trains is given while it loads: adapters for its linear layers, by the layer's path in the checkpoint,
/// and a place for its frozen weights.
pub trait Planter: Send + Sync {
    /// Adapters for the layer `path` that maps `in_features` to `out_features`; none where it is no target.
    fn plant(&self, path: &str, in_features: usize, out_features: usize) -> Result<Vec<LowRank>>;

    /// What is added to the parameter `name` of this shape as it is read, in f32 on the CPU; None where it stays as it is.
    fn delta(&self, _name: &str, _shape: &Shape) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// How the frozen matrices of blocks live.
    fn residency(&self) -> Residency {
        Residency::Whole
    }
}

/// Where tensors come from.
#[derive(Clone)]
enum Source {
    Checkpoint(Arc<Checkpoint>),
    Headers(Arc<Headers>),
    Random,
}

struct Checkpoint {
    folder: PathBuf,
    files: Vec<(PathBuf, MmapedSafetensors)>,
    /// Which file holds a tensor.
    tensors: BTreeMap<String, usize>,
    /// What no layer has asked for yet.
    unread: Mutex<BTreeSet<String>>,
}

impl Weights {
    /// Maps the checkpoint in `folder`, to be read as `dtype` on `device`.
    ///
    /// # Errors
    /// No safetensors there, a shard that the index names but is missing or lacks its tensors, a malformed header.
    pub fn open(folder: impl Into<WeightFolder>, dtype: DType, device: &Device) -> anyhow::Result<Self> {
        Self::read(&folder.into(), &Reading::numbers(dtype, device))
    }

    /// Maps the checkpoint in `folder`, to be read as `reading` says. Of headers alone, every tensor that is asked for is
    /// stood in for by one number, on the CPU; what does not fit is told by [`finish`](Self::finish), all at once.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn read(folder: &WeightFolder, reading: &Reading) -> anyhow::Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let (source, device) = match reading.content {
            Content::Numbers => (Source::Checkpoint(Arc::new(checkpoint)), reading.device.clone()),
            Content::Headers => {
                let headers = Headers::of(checkpoint, reading.device.is_cpu());
                (Source::Headers(Arc::new(headers)), Device::Cpu)
            }
        };
        Ok(Self::of(source, reading.dtype, device))
    }

    /// No checkpoint at all: every tensor that is asked for is made up, always the same for the same name. For measuring.
    pub fn random(dtype: DType, device: &Device) -> Self {
        Self::of(Source::Random, dtype, device.clone())
    }

    fn of(source: Source, dtype: DType, device: Device) -> Self {
        Self {
            source,
            prefix: String::new(),
            dtype,
            device,
            planter: None,
            shards: None,
            in_block: false,
            composed: false,
            taken: Arc::default(),
        }
    }

    /// The same weights, whose linear layers ask `planter` for adapters, and whose blocks live as it says.
    pub fn with_planter(mut self, planter: Arc<dyn Planter>) -> Self {
        self.shards = match planter.residency() {
            Residency::Shared(ranks) if self.has_numbers() => Some(Arc::new(Shards::new(ranks))),
            _ => None,
        };
        self.planter = Some(planter);
        self
    }

    /// The same weights, whose autoencoders compute on the CPU as they do on other devices: in the weights' own type, with
    /// convolutions composed of candle's. Slower by far; it shows what a GPU's types come to where there is none.
    pub fn composed(mut self) -> Self {
        self.composed = true;
        self
    }

    /// Whether autoencoders compute in f32, by the kernels for the CPU.
    pub fn takes_cpu_kernels(&self) -> bool {
        self.device.is_cpu() && !self.composed
    }

    /// The place `name` below this one.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self {
            prefix: self.path(&name.to_string()),
            ..self.clone()
        }
    }

    /// Block `index` below this one, which `build` reads: where blocks are shared out, this rank keeps its part.
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

    /// Blocks that are shared out.
    pub fn shards(&self) -> Option<Arc<Shards>> {
        self.shards.clone()
    }

    /// The same place, read as `dtype`.
    pub fn to_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Where this is, as checkpoints spell it.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Says whether tensors hold the checkpoint's numbers. Where only headers are read, a layer must not rearrange what it gets:
    /// that would fill memory with copies of one number.
    pub fn has_numbers(&self) -> bool {
        !matches!(self.source, Source::Headers(_))
    }

    fn checkpoint(&self) -> Option<&Checkpoint> {
        match &self.source {
            Source::Checkpoint(checkpoint) => Some(checkpoint),
            Source::Headers(headers) => Some(&headers.checkpoint),
            Source::Random => None,
        }
    }

    /// Whether the checkpoint has `name` here.
    pub fn contains(&self, name: &str) -> bool {
        let path = self.path(name);
        self.checkpoint()
            .is_none_or(|checkpoint| checkpoint.tensors.contains_key(&path))
    }

    /// Whether main memory has room for all of these tensors but those whose names begin with one of `ignored`, or for this
    /// rank's part of them. On another device they only pass through.
    ///
    /// # Errors
    /// [`TooLittle`]: what they take, what is free, and which number format would fit.
    pub fn ensure_memory(&self, ignored: &[&str]) -> std::result::Result<(), TooLittle> {
        let in_memory = match &self.source {
            Source::Headers(headers) => headers.in_memory,
            _ => self.device.is_cpu(),
        };
        let (Some(checkpoint), true) = (self.checkpoint(), in_memory) else {
            return Ok(());
        };
        let ranks = self.planter.as_ref().map_or(1, |planter| planter.residency().ranks());
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
            Source::Checkpoint(checkpoint) => checkpoint.read(&path, &shape, dtype, device),
            Source::Headers(headers) => headers.stand_in(&path, &shape, dtype),
            Source::Random => made_up::tensor(&path, &shape, dtype, device),
        };
        let delta = self.planter.as_ref().map(|planter| planter.delta(&path, &shape));
        match delta.transpose()?.flatten().filter(|_| self.has_numbers()) {
            None => read(self.dtype, &self.device),
            // Rounded once, as a merged checkpoint is.
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

    /// How many numbers layers have taken from these weights, wherever in them.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Adapters for the linear layer at this place.
    pub fn adapters(&self, in_features: usize, out_features: usize) -> Result<Vec<LowRank>> {
        match &self.planter {
            Some(planter) => planter.plant(&self.prefix, in_features, out_features),
            None => Ok(Vec::new()),
        }
    }

    /// Says which tensors no layer has asked for: once a model stands, there should be none. Of headers alone, also what
    /// layers asked for in vain.
    ///
    /// `ignored` are prefixes that are known to have no part in the computation.
    pub fn finish(&self, ignored: &[&str]) -> anyhow::Result<()> {
        let misfits = match &self.source {
            Source::Headers(headers) => headers.misfits(),
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
            "{}: {} tensors have no place in this model; its config.json and its weights do not belong together:{}{}",
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
            // SAFETY: the map is only read; as everywhere with mmap, a file that shrinks under us is the user's doing.
            let file = unsafe { MmapedSafetensors::new(&path) }.with_context(|| unreadable(&path))?;
            for (name, _) in file.tensors() {
                tensors.insert(name, files.len());
            }
            files.push((path, file));
        }
        let missing: Vec<&String> = promised.iter().filter(|name| !tensors.contains_key(*name)).collect();
        ensure!(
            missing.is_empty(),
            "{}: the index promises {} tensors that no shard holds, first {}; fetch the shards again",
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

    /// How many numbers it holds, without tensors whose names begin with one of `ignored`.
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

    /// The file that holds a tensor of this name and shape. Counts it as asked for.
    fn find(&self, name: &str, shape: &Shape) -> Option<&(PathBuf, MmapedSafetensors)> {
        let file = &self.files[*self.tensors.get(name)?];
        self.unread
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .remove(name);
        (file.1.get(name).ok()?.shape() == shape.dims()).then_some(file)
    }

    /// Why there is no tensor of this name and shape.
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
        let near = near.map_or(String::new(), |near| format!("; the nearest name there is {near}"));
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

/// Whether files of so many bytes in all can be mapped.
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

/// Says that mapped bytes were read and need not stay in memory: left alone, a process that reads a checkpoint comes to
/// hold all of it beside what it makes of it. They are read again if they are looked at again.
///
/// # Safety
/// `bytes` lie in a map of a file that nobody writes to.
#[cfg(target_os = "linux")]
unsafe fn unload(bytes: &[u8]) {
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    // Pages that are others', too, stay.
    let start = bytes.as_ptr().align_offset(page);
    let length = bytes.len().saturating_sub(start) / page * page;
    if length > 0 {
        let pages = bytes[start..start + length].as_ptr();
        // SAFETY: by the caller's promise the pages are filled from the file when they are needed again.
        unsafe { libc::madvise(pages.cast_mut().cast(), length, libc::MADV_DONTNEED) };
    }
}

#[cfg(not(target_os = "linux"))]
unsafe fn unload(_bytes: &[u8]) {}

/// The first tensor in `folder` that is not finite, by file, name and place; none where all are. It reads all of them: for
/// when a result is not finite, and nobody knows why.
///
/// # Errors
/// As [`Weights::open`].
pub fn not_finite(folder: impl Into<WeightFolder>) -> anyhow::Result<Option<String>> {
    let checkpoint = Checkpoint::open(&folder.into())?;
    for (path, file) in &checkpoint.files {
        for (name, view) in file.tensors() {
            let Ok(dtype) = DType::try_from(view.dtype()) else {
                continue; // in a format that nothing here reads
            };
            if let Some(first) = finite::first_in(view.data(), dtype) {
                return Ok(Some(format!("{}: the tensor {name} holds {first}", path.display())));
            }
        }
    }
    Ok(None)
}
