//! Frozen adapters under others: `W + scale B A` is read in place of W, whatever else adapts the layer.

use std::sync::Arc;

use candle_core::{Result, Shape, Tensor};

use super::ScaledFile;
use super::adapters::Adapters;
use super::file;
use super::names::Names;
use crate::nn::adapter::{Adapt, LayerId, LoraLayer};
use crate::ops::stored::StoredMatrix;

/// Reads frozen adapters; `families` are those whose names the files may use.
///
/// # Errors
/// Fails for files that cannot be read, or not applied completely.
pub fn read(files: &[ScaledFile], families: &[&'static Names]) -> anyhow::Result<Arc<Adapters>> {
    let read = |lora: &ScaledFile| file::read(&lora.path, families)?.apply(&lora.path, lora.scale);
    let files = files.iter().map(read).collect::<anyhow::Result<_>>()?;
    Ok(Arc::new(Adapters::merged(files)))
}

/// Adapters of a source over frozen ones.
pub struct OverFrozen {
    /// Frozen adapters, which are merged.
    pub frozen: Arc<Adapters>,
    /// Adapters of layers.
    pub own: Arc<dyn Adapt>,
}

impl Adapt for OverFrozen {
    fn adapt(&self, layer: &LayerId) -> Result<Vec<LoraLayer>> {
        self.own.adapt(layer)
    }

    fn quantized(&self, layer: &LayerId, dense: &Tensor, stored: &dyn StoredMatrix) -> Result<()> {
        self.own.quantized(layer, dense, stored)
    }

    fn needs_dense(&self, layer: &LayerId) -> Result<bool> {
        self.own.needs_dense(layer)
    }

    fn delta(&self, name: &str, shape: &Shape) -> Result<Option<Tensor>> {
        self.frozen.delta(name, shape)
    }
}
