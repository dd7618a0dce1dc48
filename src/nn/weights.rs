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

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::bail;
use candle_core::{DType, Device, Result, Shape, Tensor};

mod headers;
mod memory;
mod quantized;

use headers::Headers;
use quantized::Quantized;

pub use memory::WeightBytes;

use super::adapter::{Adapt, LayerId, LoraLayer, WeightForm};
use super::checkpoint::Checkpoint;
use super::lent::{LentBlocks, Matrix};
use super::load::{Content, Load};
use super::outline::Outline;
use super::quantized_cache::QuantizedCache;
use super::random_weights;
use super::residency::Residency;
use super::weight_files::WeightFolder;
use crate::ops::stored::{Outlined, StoredMatrix, Weight};

/// Name of a layer's weight.
const WEIGHT: &str = "weight";

/// Number of mismatched tensors that are named.
const SHOWN: usize = 8;

/// A position in a checkpoint: layers read their tensors below it.
#[derive(Clone)]
pub struct Weights {
    source: WeightSource,
    prefix: String,
    dtype: DType,
    device: Device,
    adapters: Option<Arc<dyn Adapt>>,
    residency: Residency,
    quantization: Option<Quantized>,
    quantized_cache: Option<Arc<QuantizedCache>>,
    /// Blocks whose matrices are not their layers' own, if that is so.
    lent: Option<Arc<LentBlocks>>,
    /// True inside of such a block.
    in_block: bool,
    /// True if the CPU computes like other devices.
    composed: bool,
    /// True if matrices have no numbers.
    outlines: bool,
    read: Arc<ReadSoFar>,
}

/// Counts of what layers have read so far.
#[derive(Default)]
struct ReadSoFar {
    numbers: AtomicUsize,
    /// Bytes, with those of blocks that are elsewhere.
    bytes: AtomicUsize,
    /// Blocks that are not lent, in order.
    blocks: Mutex<Vec<BlockBytes>>,
    /// Forms of matrices without numbers, by their paths, in order.
    forms: Mutex<Vec<(String, Outlined)>>,
}

/// Size of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockBytes {
    /// Path of the block in the checkpoint.
    pub path: String,
    /// Bytes of what its layers have read.
    pub bytes: usize,
}

impl ReadSoFar {
    fn add(&self, numbers: usize, bytes: usize) {
        self.numbers.fetch_add(numbers, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn blocks(&self) -> MutexGuard<'_, Vec<BlockBytes>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forms(&self) -> MutexGuard<'_, Vec<(String, Outlined)>> {
        self.forms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Source of tensors.
#[derive(Clone)]
enum WeightSource {
    Checkpoint(Arc<Checkpoint>),
    Headers(Arc<Headers>),
    Random,
}

impl Weights {
    /// Maps the checkpoint in `folder`, to be read as `dtype` on `device`.
    ///
    /// # Errors
    /// Fails without safetensors, for a shard in the index that is missing or lacks its tensors, and for a malformed
    /// header.
    pub fn open(folder: impl Into<WeightFolder>, dtype: DType, device: &Device) -> anyhow::Result<Self> {
        Self::read(&folder.into(), &Load::new(dtype, device))
    }

    /// Maps the checkpoint in `folder`, to be read according to `load`. With headers alone, every requested tensor is
    /// replaced by one number, on the CPU; mismatches are reported by [`finish`](Self::finish), all at once.
    ///
    /// # Errors
    /// Same as [`open`](Self::open).
    pub fn read(folder: &WeightFolder, load: &Load) -> anyhow::Result<Self> {
        let checkpoint = match (load.content, &load.header_cache) {
            (Content::Headers | Content::Outlines, Some(cache)) => cache.open(folder)?,
            _ => Checkpoint::open(folder)?,
        };
        Ok(match load.content {
            Content::Numbers => Self::of(WeightSource::Checkpoint(Arc::new(checkpoint)), load),
            Content::Headers | Content::Outlines => {
                let headers = Headers::of(checkpoint, load.device.is_cpu());
                Self {
                    device: Device::Cpu,
                    lent: None,
                    ..Self::of(WeightSource::Headers(Arc::new(headers)), load)
                }
            }
        })
    }

    /// Random weights without a checkpoint, always the same for the same name. For benchmarks.
    pub fn random(load: &Load) -> Self {
        Self::of(WeightSource::Random, load)
    }

    fn of(source: WeightSource, load: &Load) -> Self {
        Self {
            source,
            prefix: String::new(),
            dtype: load.dtype,
            device: load.device.clone(),
            adapters: load.adapters.clone(),
            residency: load.residency.clone(),
            quantization: None,
            quantized_cache: load.quantized_cache.clone(),
            lent: load.residency.lent_blocks(&load.device),
            in_block: false,
            composed: load.reference_ops || (load.content == Content::Headers && !load.device.is_cpu()),
            outlines: load.content == Content::Outlines,
            read: Arc::default(),
        }
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

    /// Reads block `index` below this position by `build`. Where blocks are lent, their matrices go to their keeper.
    pub fn block<B>(&self, index: usize, build: impl FnOnce(Self) -> Result<B>) -> Result<B> {
        let Some(lent) = &self.lent else {
            let before = self.bytes();
            let position = self.pp(index);
            let path = position.prefix.clone();
            let block = build(position)?;
            let bytes = self.bytes() - before;
            self.read.blocks().push(BlockBytes { path, bytes });
            return Ok(block);
        };
        let inside = Self {
            in_block: true,
            ..self.pp(index)
        };
        let block = build(inside)?;
        lent.end_block()?;
        Ok(block)
    }

    /// Returns the blocks whose matrices are lent, if they are.
    pub fn lent(&self) -> Option<Arc<LentBlocks>> {
        self.lent.clone()
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
        self.outlines || !matches!(self.source, WeightSource::Headers(_))
    }

    /// Returns true if the model runs for its memory alone.
    pub fn are_outlines(&self) -> bool {
        self.outlines
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
        self.checkpoint().is_none_or(|checkpoint| checkpoint.contains(&path))
    }

    /// Reads the tensor `name`, which must have this shape.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        self.get_counted(&self.device, shape.into(), name)
    }

    fn get_counted(&self, device: &Device, shape: Shape, name: &str) -> Result<Tensor> {
        let numbers = shape.elem_count();
        self.read.add(numbers, numbers * self.dtype.size_in_bytes());
        match self.outlines {
            true => {
                self.request(&shape, name)?;
                match shape.rank() {
                    0 | 1 => Tensor::ones(shape, self.dtype, &Device::Cpu), // scales must not be 0
                    _ => Tensor::zeros(shape, self.dtype, &Device::Cpu),
                }
            }
            false => self.get_on(device, shape, name),
        }
    }

    /// Looks for the tensor `name` of this shape, without its numbers.
    fn request(&self, shape: &Shape, name: &str) -> Result<()> {
        match &self.source {
            WeightSource::Headers(headers) => headers.stand_in(&self.path(name), shape, self.dtype).map(drop),
            WeightSource::Checkpoint(_) | WeightSource::Random => Ok(()),
        }
    }

    fn get_on(&self, device: &Device, shape: Shape, name: &str) -> Result<Tensor> {
        let path = self.path(name);
        let read = |dtype, device: &Device| match &self.source {
            WeightSource::Checkpoint(checkpoint) => checkpoint.read(&path, &shape, dtype, device),
            WeightSource::Headers(headers) => headers.stand_in(&path, &shape, dtype),
            WeightSource::Random => random_weights::tensor(&path, &shape, dtype, device),
        };
        let delta = self.adapters.as_ref().map(|adapters| adapters.delta(&path, &shape));
        match delta.transpose()?.flatten().filter(|_| self.has_numbers()) {
            None => read(self.dtype, device),
            // Rounded once, like a merged checkpoint.
            Some(delta) => (read(DType::F32, &Device::Cpu)? + delta)?
                .to_dtype(self.dtype)?
                .to_device(device),
        }
    }

    /// Reads the matrix `name`, which must have this shape: in its stored form, if it has one and nothing is added to it,
    /// or in the form of [`quantized`](Self::quantized).
    pub fn matrix(&self, shape: (usize, usize), name: &str) -> Result<Matrix> {
        let path = self.path(name);
        if self.outlines {
            self.request(&shape.into(), name)?;
            return Ok(Matrix::Own(Weight::Stored(self.outline(shape, name))));
        }
        let lent = self.lent.as_ref().filter(|_| self.in_block);
        let device = match lent {
            Some(lent) if lent.reads_to_host() => &Device::Cpu,
            _ => &self.device,
        };
        let place = |matrix: Weight, origin| match lent {
            Some(lent) => lent.take(matrix, origin),
            None => Ok(Matrix::Own(matrix)),
        };
        if let WeightSource::Checkpoint(checkpoint) = &self.source
            && checkpoint.is_stored(&path)
            && !self.has_delta(&path, &shape.into())?
            && let Some(stored) = checkpoint.stored(&path, shape, device)?
        {
            return place(self.counted(stored), None);
        }
        if let Some(form) = self.quantization_of(name)
            && self.has_numbers()
        {
            return place(self.counted(self.quantized_matrix(form, shape, name, device)?), None);
        }
        let whole = self.get_counted(device, shape.into(), name)?;
        let origin = match (lent, self.has_delta(&path, &shape.into())?) {
            (Some(_), false) => self.checkpoint().and_then(|file| file.origin_as(&path, self.dtype)),
            _ => None,
        };
        place(whole.into(), origin)
    }

    /// Returns a matrix without numbers that takes as many bytes as this one.
    fn outline(&self, shape: (usize, usize), name: &str) -> Arc<Outline> {
        let path = self.path(name);
        let stored = self.checkpoint().and_then(|checkpoint| checkpoint.stored_bytes(&path));
        let quantized = self.quantization_of(name).map(|form| form.bytes(shape));
        let few_bits = stored.or(quantized).map(|bytes| bytes as usize);
        let bytes = few_bits.unwrap_or(shape.0 * shape.1 * self.dtype.size_in_bytes());
        let form = match (few_bits, self.dtype) {
            (Some(_), _) => Outlined::FewBits,
            (None, DType::F32) => Outlined::Wide,
            (None, _) => Outlined::Narrow,
        };
        self.read.add(shape.0 * shape.1, bytes);
        self.read.forms().push((path, form));
        Arc::new(Outline { shape, bytes, form })
    }

    fn counted(&self, stored: Arc<dyn StoredMatrix>) -> Weight {
        let (rows, columns) = stored.shape();
        self.read.add(rows * columns, stored.bytes());
        Weight::Stored(stored)
    }

    fn has_delta(&self, path: &str, shape: &Shape) -> Result<bool> {
        let delta = self.adapters.as_ref().map(|adapters| adapters.delta(path, shape));
        Ok(delta.transpose()?.flatten().is_some())
    }

    /// Returns how many numbers layers have read from these weights, at any position.
    pub fn taken(&self) -> usize {
        self.read.numbers.load(Ordering::Relaxed)
    }

    /// Returns the bytes of what layers have read, at any position; those of blocks that are elsewhere in whole.
    pub fn bytes(&self) -> usize {
        self.read.bytes.load(Ordering::Relaxed)
    }

    /// Returns the size of each block that has been read, in order; none of sharded blocks.
    pub fn blocks(&self) -> Vec<BlockBytes> {
        self.read.blocks().clone()
    }

    /// Returns the forms of the matrices without numbers that have been read, by their paths, in order: passes of models
    /// with the same ones take the same memory.
    pub fn outlined_forms(&self) -> Vec<(String, Outlined)> {
        self.read.forms().clone()
    }

    /// Returns the adapters of the layer at this position, whose weight has this shape.
    pub fn adapters(&self, weight: &[usize]) -> Result<Vec<LoraLayer>> {
        match &self.adapters {
            Some(adapters) => adapters.adapt(&self.layer(weight)),
            None => Ok(Vec::new()),
        }
    }

    /// Returns the layer at this position, whose weight has this shape.
    fn layer<'a>(&'a self, weight: &'a [usize]) -> LayerId<'a> {
        let path = self.path(WEIGHT);
        let stored = self.checkpoint().is_some_and(|checkpoint| checkpoint.is_stored(&path));
        let form = match (stored, self.quantization_of(WEIGHT)) {
            (true, _) => WeightForm::Stored,
            (false, Some(_)) if weight.len() == 2 => WeightForm::Quantized,
            (false, _) => WeightForm::Dense,
        };
        LayerId {
            path: &self.prefix,
            weight,
            form,
        }
    }

    /// Fails if there are tensors that no layer has requested, or, with headers alone, requests that failed: to be
    /// called once a model is built.
    ///
    /// `ignored` are prefixes that are known to have no part in the computation.
    pub fn finish(&self, ignored: &[&str]) -> anyhow::Result<()> {
        if let Some(quantized) = &self.quantization {
            quantized.report();
        }
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
        let extra = checkpoint.unread_but(ignored);
        if extra.is_empty() {
            return Ok(());
        }
        let shown = extra.iter().take(SHOWN).map(|name| {
            format!(
                "\n  {} in {}",
                checkpoint.shown(name),
                checkpoint.path_of(name).display()
            )
        });
        bail!(
            "{}: {} tensors have no place in this model; its config.json and its weights do not match:{}{}",
            checkpoint.folder.source().display(),
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
