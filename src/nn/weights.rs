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

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::bail;
use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use indicatif::BinaryBytes;

mod headers;

use headers::Headers;

use super::adapter::{Adapt, LayerId, LoraLayer, WeightForm};
use super::checkpoint::{Checkpoint, Size};
use super::load::{Content, Load};
use super::random_weights;
use super::residency::Residency;
use super::shards::{Matrix, Shards};
use super::storage::quantize::{self, Quantization};
use super::weight_files::WeightFolder;
use crate::ops::stored::{StoredMatrix, Weight};
use crate::process::memory::{self, TooLittle};

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
    /// Storage of the blocks' matrices, if it is not the layers' own.
    shards: Option<Arc<Shards>>,
    /// True inside of a sharded block.
    in_block: bool,
    /// True if the CPU computes like other devices.
    composed: bool,
    read: Arc<ReadSoFar>,
}

/// Counts of what layers have read so far.
#[derive(Default)]
struct ReadSoFar {
    numbers: AtomicUsize,
    /// Bytes in memory, with those of parts that other ranks keep.
    bytes: AtomicUsize,
    /// Bytes of stored matrices in sharded blocks, which every rank has whole.
    unsharded: AtomicUsize,
}

impl ReadSoFar {
    fn add(&self, numbers: usize, bytes: usize) {
        self.numbers.fetch_add(numbers, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Form that the matrices of linear layers are stored in as they are read.
#[derive(Clone)]
struct Quantized {
    form: Quantization,
    /// Parts of the paths of layers that stay dense, or their beginnings behind `^`.
    dense: Arc<[&'static str]>,
}

impl Quantized {
    fn takes(&self, path: &str) -> bool {
        !quantize::stays_dense(&self.dense, path)
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
        let checkpoint = Checkpoint::open(folder)?;
        Ok(match load.content {
            Content::Numbers => Self::of(WeightSource::Checkpoint(Arc::new(checkpoint)), load),
            Content::Headers => {
                let headers = Headers::of(checkpoint, load.device.is_cpu());
                Self {
                    device: Device::Cpu,
                    shards: None,
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
            shards: load.residency.shards(),
            in_block: false,
            composed: false,
            read: Arc::default(),
        }
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

    /// Stores the matrices of linear layers in `form` as they are read, but those that the checkpoint has in few bits
    /// already, and those whose path contains one of `dense`, or begins with what is behind a `^` there.
    pub fn quantized(mut self, form: Option<Quantization>, dense: &[&'static str]) -> Self {
        let dense = dense.into();
        self.quantization = form.map(|form| Quantized { form, dense });
        self
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
        self.checkpoint().is_none_or(|checkpoint| checkpoint.contains(&path))
    }

    /// Checks that main memory is large enough for all tensors except those whose names begin with one of `ignored`, or
    /// for this rank's part of those that are dense. On another device they only pass through.
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
        let ranks = self.residency.ranks() as u64;
        let bytes = |dtype: DType| {
            let tensors = checkpoint.sizes();
            let wanted = tensors.filter(|(name, _)| !ignored.iter().any(|prefix| name.starts_with(prefix)));
            let (mut whole, mut shared) = (0u64, 0u64);
            for (name, size) in wanted {
                match size {
                    Size::Stored(bytes) => whole = whole.saturating_add(bytes),
                    Size::Dense(shape) => match self.quantized_bytes(name, &shape) {
                        Some(bytes) => whole = whole.saturating_add(bytes),
                        None => shared = shared.saturating_add(dense_bytes(&shape, dtype)),
                    },
                }
            }
            whole.saturating_add(shared / ranks)
        };
        let needed = bytes(self.dtype);
        match memory::most() {
            Some(free) if free.bytes < needed => Err(TooLittle {
                what: format!("{} as {}", checkpoint.folder.source().display(), self.dtype.as_str()),
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

    /// Returns the bytes of a dense tensor in the form that it will be stored in; None if it stays dense.
    fn quantized_bytes(&self, name: &str, shape: &[usize]) -> Option<u64> {
        let (quantized, &[rows, columns]) = (self.quantization.as_ref()?, shape) else {
            return None;
        };
        quantized.takes(name).then(|| quantized.form.bytes((rows, columns)))
    }

    /// Reads the tensor `name`, which must have this shape.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        let shape = shape.into();
        let numbers = shape.elem_count();
        self.read.add(numbers, numbers * self.dtype.size_in_bytes());
        self.get_on(&self.device, shape, name)
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

    /// Reads the bias of a linear layer (out): rounded to fp8 where plain fp8 is the form of its matrix, as diffusers'
    /// layerwise casting does.
    pub fn bias(&self, out_features: usize) -> Result<Tensor> {
        let bias = self.get(out_features, "bias")?;
        match self.quantization_of("weight") {
            Some(Quantization::Fp8) if self.has_numbers() => {
                let rounded = Quantization::Fp8.store(&bias.unsqueeze(0)?, &self.device)?;
                rounded.rows(0..1, self.dtype)?.squeeze(0)
            }
            _ => Ok(bias),
        }
    }

    /// Returns the form that the matrix `name` is to be stored in; None for one that has a form already.
    fn quantization_of(&self, name: &str) -> Option<Quantization> {
        let path = self.path(name);
        let stored = self.checkpoint().is_some_and(|checkpoint| checkpoint.is_stored(&path));
        let quantized = self.quantization.as_ref();
        let quantized = quantized.filter(|quantized| !stored && quantized.takes(&path));
        quantized.map(|quantized| quantized.form)
    }

    /// Reads the matrix `name`, which must have this shape: in its stored form, if it has one and nothing is added to it,
    /// or in the form of [`quantized`](Self::quantized). Such a matrix is not sharded.
    pub fn matrix(&self, shape: (usize, usize), name: &str) -> Result<Matrix> {
        let path = self.path(name);
        if let WeightSource::Checkpoint(checkpoint) = &self.source
            && checkpoint.is_stored(&path)
            && !self.has_delta(&path, &shape.into())?
            && let Some(stored) = checkpoint.stored(&path, shape, &self.device)?
        {
            return Ok(self.own(stored));
        }
        if let Some(form) = self.quantization_of(name)
            && self.has_numbers()
        {
            let dense = self.get_on(&Device::Cpu, shape.into(), name)?;
            let stored = form.store(&dense, &self.device);
            let stored =
                stored.map_err(|error| Error::Msg(format!("storing the matrix {path} as {}: {error}", form.name())))?;
            if let Some(adapters) = &self.adapters {
                adapters.quantized(&self.layer(&[shape.0, shape.1]), &dense, &*stored)?;
            }
            return Ok(self.own(stored));
        }
        let whole = self.get(shape, name)?;
        Ok(match &self.shards {
            Some(shards) if self.in_block => shards.take(whole),
            _ => Matrix::Own(whole.into()),
        })
    }

    fn own(&self, stored: Arc<dyn StoredMatrix>) -> Matrix {
        let (rows, columns) = stored.shape();
        self.read.add(rows * columns, stored.bytes());
        if self.shards.is_some() && self.in_block {
            self.read.unsharded.fetch_add(stored.bytes(), Ordering::Relaxed);
        }
        Matrix::Own(Weight::Stored(stored))
    }

    /// Returns the bytes of stored matrices in sharded blocks, which every rank has whole.
    pub fn unsharded(&self) -> usize {
        self.read.unsharded.load(Ordering::Relaxed)
    }

    fn has_delta(&self, path: &str, shape: &Shape) -> Result<bool> {
        let delta = self.adapters.as_ref().map(|adapters| adapters.delta(path, shape));
        Ok(delta.transpose()?.flatten().is_some())
    }

    /// Returns how many numbers layers have read from these weights, at any position.
    pub fn taken(&self) -> usize {
        self.read.numbers.load(Ordering::Relaxed)
    }

    /// Returns the bytes in memory of what layers have read, at any position; those of sharded blocks in whole.
    pub fn bytes(&self) -> usize {
        self.read.bytes.load(Ordering::Relaxed)
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

fn dense_bytes(shape: &[usize], dtype: DType) -> u64 {
    let size = dtype.size_in_bytes() as u64;
    shape.iter().fold(size, |all, side| all.saturating_mul(*side as u64))
}
