//! Adapters of zeros, in the shapes of those that learn: for a model that only shows how much memory it takes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Var};

use crate::lora::names::Names;
use crate::lora::selection::Selection;
use crate::lora::{Config, Init};
use crate::nn::adapter::{Adapt, LayerId, LoraLayer};
use crate::nn::dropout::{Dropout, Seed};

/// Adds adapters of zeros to every layer that `lora.target_modules` names.
pub struct BlankAdapters {
    config: Config,
    selection: Selection,
    seed: Seed,
    device: Device,
    layers: Mutex<Vec<BlankLayer>>,
}

/// Adapter of one layer.
#[derive(Debug, Clone)]
pub struct BlankLayer {
    /// Path of the layer in the checkpoint.
    pub path: String,
    /// Numbers of its input, and of its output.
    pub features: [usize; 2],
    /// Matrix A (rank, in).
    pub a: Var,
    /// Matrix B (out, rank).
    pub b: Var,
}

impl BlankAdapters {
    /// Adapters for these settings on `device`, of this rank in place of theirs; a file to start from is not read.
    ///
    /// # Errors
    /// Fails for invalid `lora.target_modules`.
    pub fn new(config: &Config, rank: usize, families: &[&'static Names], device: &Device) -> anyhow::Result<Self> {
        let mut config = Config { rank, ..config.clone() };
        config.init.take_if(|init| matches!(init, Init::File(_)));
        let seed = Seed::default();
        seed.set(Some(0));
        Ok(Self {
            selection: Selection::new(&config, families)?,
            config,
            seed,
            device: device.clone(),
            layers: Mutex::default(),
        })
    }

    /// Returns the adapters that the model has requested so far.
    pub fn layers(&self) -> Vec<BlankLayer> {
        self.locked().clone()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<BlankLayer>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Adapt for BlankAdapters {
    fn adapt(&self, layer: &LayerId) -> Result<Vec<LoraLayer>> {
        if !self.selection.selects(layer)? {
            return Ok(Vec::new());
        }
        let (rank, mut layers) = (self.config.rank, self.locked());
        let zeros = |shape: (usize, usize)| Var::zeros(shape, DType::F32, &self.device);
        let blank = BlankLayer {
            path: layer.path.to_string(),
            features: [layer.in_features(), layer.out_features()],
            a: zeros((rank, layer.in_features()))?,
            b: zeros((layer.out_features(), rank))?,
        };
        let adapter = LoraLayer {
            a: blank.a.as_tensor().clone(),
            b: blank.b.as_tensor().clone(),
            scale: self.config.scale(),
            dropout: (self.config.dropout > 0.0).then(|| Dropout {
                probability: self.config.dropout,
                seed: self.seed.clone(),
                layer: layers.len() as u64,
            }),
        };
        layers.push(blank);
        Ok(vec![adapter])
    }
}
