//! Adapters by layer path, applied to a model while it loads.
//!
//! `scale = strength alpha / rank`, or `strength alpha / sqrt(rank)` for rank-stabilised adapters (arXiv:2312.03732).
//! Differences of whole parameters, as in distilled models, are added as the parameter is read: `W + strength D`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use anyhow::bail;
use candle_core::{DType, Device, Error, Result, Shape, Tensor};

use crate::nn::adapter::{Adapt, LayerId, LoraLayer};

/// Relative difference of two products that are the same but for rounding.
const ROUNDING: f32 = 1e-4;

/// Adapter of one layer, as stored in a file.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Matrix A (rank, in); for a convolution (rank, in, ...).
    pub a: Tensor,
    /// Matrix B (out, rank); for a convolution (out, rank, 1, ...).
    pub b: Tensor,
    /// Alpha, which the scale is computed from.
    pub alpha: f64,
    /// True for rank-stabilised scaling.
    pub use_rslora: bool,
}

/// Differences of whole parameters, by the parameter's name in diffusers.
pub type Deltas = BTreeMap<String, Tensor>;

impl Adapter {
    /// Returns the rank.
    pub fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or(0)
    }

    /// Returns the factor of its output.
    pub fn scale(&self) -> f64 {
        super::scale(self.alpha, self.rank(), self.use_rslora)
    }

    /// Returns A (rank, in) and B (out, rank); a convolution's `in` counts the numbers under its kernel.
    pub fn matrices(&self) -> Result<(Tensor, Tensor)> {
        Ok((self.a.flatten_from(1)?, self.b.flatten_from(1)?))
    }

    /// Returns B A, scaled, in f32.
    fn product(&self) -> Result<Tensor> {
        let (a, b) = self.matrices()?;
        let b = (b.to_dtype(DType::F32)? * self.scale())?;
        b.matmul(&a.to_dtype(DType::F32)?)
    }

    /// Returns true if it adds what the other one adds, but for rounding.
    pub(super) fn is_same_change(&self, other: &Self) -> Result<bool> {
        let (ours, theirs) = (self.product()?, other.product()?);
        if ours.dims() != theirs.dims() {
            return Ok(false);
        }
        let largest = |tensor: Tensor| tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
        Ok(largest((&ours - &theirs)?)? <= ROUNDING * largest(theirs)?)
    }

    /// Returns why it does not fit a weight of this shape.
    fn misfit(&self, weight: &[usize]) -> Option<String> {
        let output = self.b.dims().first().copied().unwrap_or(0);
        let input = plain(self.a.dims().get(1..).unwrap_or_default());
        match weight {
            [] | [_] => Some(format!("is for a layer whose weight {weight:?} is not a matrix")),
            [rows, columns @ ..] if *rows == output && plain(columns) == input => None,
            [rows, columns] if input.len() == 1 => Some(format!(
                "maps {} to {output}, but the layer maps {columns} to {rows}",
                input[0]
            )),
            _ => Some(format!(
                "makes {output} of {input:?}, but the layer's weight is {weight:?}"
            )),
        }
    }
}

/// Drops trailing kernel sides of 1: a linear layer may be written as a convolution of one point.
fn plain(sides: &[usize]) -> &[usize] {
    let ones = sides.iter().skip(1).rev().take_while(|side| **side == 1).count();
    &sides[..sides.len() - ones]
}

/// Change of a layer or a parameter by a file.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// `W + scale B A`, where W is the layer's weight.
    LoraLayer(&'a Adapter),
    /// `W + D`, where W is the parameter.
    Whole(&'a Tensor),
}

impl Change<'_> {
    /// Returns the name of the changed parameter, given the layer or parameter `name`.
    pub fn parameter(&self, name: &str) -> String {
        match self {
            Self::LoraLayer(_) => format!("{name}.weight"),
            Self::Whole(_) => name.to_string(),
        }
    }

    /// Returns why it does not fit a parameter of this shape.
    pub fn misfit(&self, shape: &[usize]) -> Option<String> {
        match self {
            Self::LoraLayer(adapter) => adapter.misfit(shape),
            Self::Whole(delta) => {
                (delta.dims() != shape).then(|| format!("is {:?}, but the parameter is {shape:?}", delta.dims()))
            }
        }
    }

    /// Explains why it does not apply to a model without its parameter.
    pub fn unmatched_layer(&self) -> &'static str {
        match self {
            Self::LoraLayer(_) => "belongs to a layer that this model does not have",
            Self::Whole(_) => "is of a parameter that this model does not have",
        }
    }

    /// Returns a noun for messages.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::LoraLayer(_) => "the adapter of",
            Self::Whole(_) => "the difference of",
        }
    }
}

/// Returns all changes by a file, by the name of the layer or parameter.
pub fn changes<'a>(
    layers: &'a BTreeMap<String, Adapter>,
    deltas: &'a Deltas,
) -> impl Iterator<Item = (&'a String, Change<'a>)> {
    let low = layers
        .iter()
        .map(|(layer, adapter)| (layer, Change::LoraLayer(adapter)));
    low.chain(deltas.iter().map(|(name, delta)| (name, Change::Whole(delta))))
}

/// Adapters of one file.
#[derive(Debug)]
pub struct AdapterFile {
    /// Path of the file, for messages.
    pub path: PathBuf,
    /// Strength of its application.
    pub strength: f64,
    /// Adapters by the layer's path in diffusers.
    pub layers: BTreeMap<String, Adapter>,
    /// Differences of whole parameters.
    pub deltas: Deltas,
}

impl AdapterFile {
    /// Returns its change to the parameter `name`, of this shape, before its strength; `wanted` selects whether an
    /// adapter of the parameter's layer is included.
    ///
    /// # Errors
    /// Fails for a change of another shape.
    fn delta(&self, name: &str, shape: &Shape, wanted: bool) -> Result<Option<Tensor>> {
        let fits = |layer: &str, change: Change| match change.misfit(shape.dims()) {
            None => Ok(()),
            Some(why) => Err(Error::Msg(format!(
                "{}: {} {layer} {why}",
                self.path.display(),
                change.noun()
            ))),
        };
        let mut sum = None;
        if let Some(delta) = self.deltas.get(name) {
            fits(name, Change::Whole(delta))?;
            sum = Some(delta.to_dtype(DType::F32)?);
        }
        let layer = name.strip_suffix(".weight").filter(|_| wanted);
        if let Some((layer, adapter)) = layer.and_then(|layer| self.layers.get_key_value(layer)) {
            fits(layer, Change::LoraLayer(adapter))?;
            let product = adapter.product()?.reshape(shape)?;
            sum = Some(match sum {
                Some(sum) => (sum + product)?,
                None => product,
            });
        }
        Ok(sum)
    }
}

/// Adapters of several files, each to be applied to its layer.
#[derive(Debug)]
pub struct Adapters {
    files: Vec<AdapterFile>,
    device: Device,
    /// True if adapters of linear layers are added to their weights, like all other changes.
    merges: bool,
    /// Names of layers and parameters that were found.
    adapted: Mutex<BTreeSet<String>>,
}

impl Adapters {
    /// Combines the adapters of these files, on `device`.
    pub fn new(files: Vec<AdapterFile>, device: &Device) -> Self {
        Self {
            files,
            device: device.clone(),
            merges: false,
            adapted: Mutex::default(),
        }
    }

    /// Combines the adapters of these files, which are added to the weights as they are read.
    pub fn merged(files: Vec<AdapterFile>) -> Self {
        Self {
            merges: true,
            ..Self::new(files, &Device::Cpu)
        }
    }

    /// Fails if some adapters found no layer: to be called once the model is built.
    pub fn finish(&self) -> anyhow::Result<()> {
        let adapted = self.adapted();
        for file in &self.files {
            let stray: Vec<_> = changes(&file.layers, &file.deltas)
                .filter(|(name, _)| !adapted.contains(*name))
                .collect();
            if let Some((first, change)) = stray.first() {
                bail!(
                    "{}: {} of {} adapters have no place in this model; {} {first} {}; the file was made for another model",
                    file.path.display(),
                    stray.len(),
                    file.layers.len() + file.deltas.len(),
                    change.noun(),
                    change.unmatched_layer()
                );
            }
        }
        Ok(())
    }

    fn adapted(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.adapted.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Adapt for Adapters {
    fn adapt(&self, layer: &LayerId) -> Result<Vec<LoraLayer>> {
        let (path, mut found) = (layer.path, Vec::new());
        for file in self.files.iter().filter(|_| !layer.is_convolution() && !self.merges) {
            let Some(adapter) = file.layers.get(path) else {
                continue;
            };
            if let Some(why) = adapter.misfit(layer.weight) {
                return Err(Error::Msg(format!(
                    "{}: the adapter of {path} {why}",
                    file.path.display()
                )));
            }
            let (a, b) = adapter.matrices()?;
            let to = |tensor: &Tensor| tensor.to_device(&self.device)?.to_dtype(DType::F32);
            found.push(LoraLayer {
                a: to(&a)?,
                b: to(&b)?,
                scale: adapter.scale() * file.strength,
                dropout: None,
            });
        }
        if !found.is_empty() {
            self.adapted().insert(path.to_string());
        }
        Ok(found)
    }

    /// Low-rank adapters of linear layers are applied at run time unless they are merged; those of convolutions are added to
    /// the kernel.
    fn delta(&self, name: &str, shape: &Shape) -> Result<Option<Tensor>> {
        let mut sum: Option<Tensor> = None;
        for file in &self.files {
            let merges = self.merges || shape.rank() > 2;
            let Some(delta) = file.delta(name, shape, merges)? else {
                continue;
            };
            let delta = (delta * file.strength)?;
            sum = Some(match sum {
                Some(sum) => (sum + delta)?,
                None => delta,
            });
            let mut adapted = self.adapted();
            adapted.insert(name.to_string());
            if let Some(layer) = name.strip_suffix(".weight").filter(|_| merges) {
                adapted.insert(layer.to_string());
            }
        }
        Ok(sum)
    }
}
