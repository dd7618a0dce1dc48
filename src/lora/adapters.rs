//! Adapters by the path of the layer they belong to, planted on a model while it loads.
//!
//! `scale = strength alpha / rank`, or `strength alpha / sqrt(rank)` for rank-stabilised adapters (arXiv:2312.03732).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::bail;
use candle_core::{DType, Device, Error, Result, Tensor};

use crate::nn::linear::LowRank;
use crate::nn::weights::Planter;

/// One adapter of one layer, as a file has it.
#[derive(Debug, Clone)]
pub struct Adapter {
    pub a: Tensor, // (rank, in)
    pub b: Tensor, // (out, rank)
    pub alpha: f64,
    /// Rank-stabilised.
    pub use_rslora: bool,
}

impl Adapter {
    /// Its width.
    pub fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or(0)
    }

    /// What its output is multiplied by.
    pub fn scale(&self) -> f64 {
        super::scale(self.alpha, self.rank(), self.use_rslora)
    }
}

/// The adapters of one file.
#[derive(Debug)]
pub struct AdapterFile {
    pub path: PathBuf,
    /// How strongly it is applied.
    pub strength: f64,
    pub layers: BTreeMap<String, Adapter>,
}

/// Adapters of several files, each to be planted where its layer is.
#[derive(Debug)]
pub struct Adapters {
    files: Vec<AdapterFile>,
    device: Device,
    planted: Mutex<BTreeSet<String>>,
}

impl Adapters {
    pub fn new(files: Vec<AdapterFile>, device: &Device) -> Self {
        Self {
            files,
            device: device.clone(),
            planted: Mutex::default(),
        }
    }

    /// Once the model stands: says which adapters found no layer.
    pub fn finish(&self) -> anyhow::Result<()> {
        let planted = self.planted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for file in &self.files {
            let stray: Vec<&String> = file.layers.keys().filter(|layer| !planted.contains(*layer)).collect();
            if let Some(first) = stray.first() {
                bail!(
                    "{}: {} of {} adapters belong to layers that this model does not have, first {first}; \
                     the file was made for another model",
                    file.path.display(),
                    stray.len(),
                    file.layers.len()
                );
            }
        }
        Ok(())
    }
}

impl Planter for Adapters {
    fn plant(&self, path: &str, in_features: usize, out_features: usize) -> Result<Vec<LowRank>> {
        let mut found = Vec::new();
        for file in &self.files {
            let Some(adapter) = file.layers.get(path) else {
                continue;
            };
            let Adapter { a, b, .. } = adapter;
            if a.dim(1)? != in_features || b.dim(0)? != out_features {
                return Err(Error::Msg(format!(
                    "{}: the adapter of {path} maps {} to {}, but the layer maps {in_features} to {out_features}",
                    file.path.display(),
                    a.dim(1)?,
                    b.dim(0)?
                )));
            }
            let to = |tensor: &Tensor| tensor.to_device(&self.device)?.to_dtype(DType::F32);
            found.push(LowRank {
                a: to(a)?,
                b: to(b)?,
                scale: adapter.scale() * file.strength,
                dropout: None,
            });
        }
        if !found.is_empty() {
            self.planted
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .insert(path.to_string());
        }
        Ok(found)
    }
}
