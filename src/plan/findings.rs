//! Findings of plans, which are the same for plans of one run with several settings: headers that were read, models that were
//! built of them, passes that were recorded.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::DType;

use super::outlined::{MatrixForms, Outlined, RecordedPass};
use super::passes::{Clips, Denoising, Pass};
use super::sizes::RecordedSizes;
use crate::data::Bucket;
use crate::models::family::Parts;
use crate::nn::header_cache::HeaderCache;
use crate::nn::storage::quantize::Quantization;
use crate::nn::vae_memory::VaeMemory;
use crate::nn::weights::WeightBytes;

/// Findings of plans of one run: of one checkpoint, with the same adapters but for their number format, at the same place.
/// Clones share them.
#[derive(Clone, Default)]
pub struct Findings(Rc<Found>);

#[derive(Default)]
struct Found {
    headers: Arc<HeaderCache>,
    models: Memo<(ModelKey, usize), Outlined>,
    passes: Memo<PassKey, Vec<RecordedPass>>,
    sizes: Memo<SizeKey, Denoising>,
    texts: Memo<(DType, Option<Quantization>), TextBytes>,
    codings: Memo<CodingKey, u64>,
}

/// Memory of text encoders.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextBytes {
    pub weights: WeightBytes,
    pub activations: u64,
}

/// All that the coding of a clip depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CodingKey {
    pub bucket: Bucket,
    pub half: Parts,
    pub dtype: DType,
    pub memory: VaeMemory,
}

/// Weights that a model is built of, and whether it has adapters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ModelKey {
    pub dtype: DType,
    pub quantization: Option<Quantization>,
    pub adapted: bool,
}

/// All that recorded passes depend on: forms in few bits are alike, whatever their number of bits.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PassKey {
    pub dtype: DType,
    pub adapted: bool,
    pub forms: Arc<MatrixForms>,
    pub pass: Pass,
    pub count: usize,
    pub sizes: RecordedSizes,
}

/// All that a pass of one size depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SizeKey {
    pub model: ModelKey,
    pub pass: Pass,
    pub clips: Clips,
}

/// Numbers of what was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Folders whose headers were read, each as often as they were.
    pub header_reads: usize,
    /// Models that were built.
    pub models: usize,
    /// Passes that ran.
    pub passes: usize,
}

impl Findings {
    /// Returns the headers that were read.
    pub(super) fn headers(&self) -> Arc<HeaderCache> {
        self.0.headers.clone()
    }

    /// Returns the model of some weights with adapters of a rank.
    pub(super) fn model(
        &self,
        key: (ModelKey, usize),
        build: impl FnOnce() -> anyhow::Result<Outlined>,
    ) -> anyhow::Result<Rc<Outlined>> {
        self.0.models.get(key, build)
    }

    /// Returns what was recorded of a pass at several sizes.
    pub(super) fn passes(
        &self,
        key: PassKey,
        record: impl FnOnce() -> anyhow::Result<Vec<RecordedPass>>,
    ) -> anyhow::Result<Rc<Vec<RecordedPass>>> {
        self.0.passes.get(key, record)
    }

    /// Returns the memory of a pass.
    pub(super) fn denoising(
        &self,
        key: SizeKey,
        add_up: impl FnOnce() -> anyhow::Result<Denoising>,
    ) -> anyhow::Result<Rc<Denoising>> {
        self.0.sizes.get(key, add_up)
    }

    /// Returns the memory of text encoders in a form.
    pub(super) fn text(
        &self,
        key: (DType, Option<Quantization>),
        find: impl FnOnce() -> anyhow::Result<TextBytes>,
    ) -> anyhow::Result<TextBytes> {
        Ok(*self.0.texts.get(key, find)?)
    }

    /// Returns the most bytes that a half of the autoencoder holds.
    pub(super) fn coding(&self, key: CodingKey, find: impl FnOnce() -> anyhow::Result<u64>) -> anyhow::Result<u64> {
        Ok(*self.0.codings.get(key, find)?)
    }

    /// Counts what was done.
    pub fn counts(&self) -> Counts {
        Counts {
            header_reads: self.0.headers.read().len(),
            models: self.0.models.0.borrow().len(),
            passes: self.0.passes.0.borrow().iter().map(|(_, passes)| passes.len()).sum(),
        }
    }
}

impl fmt::Debug for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Findings({:?})", self.counts())
    }
}

/// Values that were found once.
struct Memo<K, V>(RefCell<Vec<(K, Rc<V>)>>);

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: PartialEq, V> Memo<K, V> {
    fn get(&self, key: K, find: impl FnOnce() -> anyhow::Result<V>) -> anyhow::Result<Rc<V>> {
        if let Some((_, there)) = self.0.borrow().iter().find(|(there, _)| *there == key) {
            return Ok(there.clone());
        }
        let found = Rc::new(find()?);
        self.0.borrow_mut().push((key, found.clone()));
        Ok(found)
    }
}
