//! Trained adapters: variables added to a model while it loads.
//!
//! A starts as in PEFT, uniform within +-1/sqrt(in) (`kaiming_uniform_` with a = sqrt(5)), and B at zero, so the
//! model's output is unchanged at first. All A are drawn from one stream in the order in which the model requests its
//! layers, each like torch's `uniform_`: another order of loading would give other values. With `lora.init` both come
//! from that file, and nothing is drawn; with `lora.init: residual` from what the layer's weight lost ([`super::residual`]).

use std::sync::{Mutex, MutexGuard};

use candle_core::{DType, Device, Result, Tensor, Var};

use super::Config;
use super::adapters::Adapter;
use super::diffusers::Named;
use super::names::Names;
use super::residual::Residual;
use super::selection::Selection;
use crate::nn::adapter::{Adapt, LayerId, LoraLayer};
use crate::nn::dropout::{Dropout, Seed};
use crate::ops::stored::StoredMatrix;
use crate::rng::Rng;

/// Variables of one layer. The model shares their storage.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// Path of the layer in the checkpoint.
    pub layer: String,
    /// Shape of an input, for files: (in), or (channels, sides of the kernel...) of a convolution.
    pub input: Vec<usize>,
    /// Matrix A (rank, in).
    pub a: Var,
    /// Matrix B (out, rank).
    pub b: Var,
}

impl LoraPair {
    /// Returns the current adapter for writing.
    pub fn named(&self) -> Named<'_> {
        Named {
            layer: &self.layer,
            input: &self.input,
            a: &self.a,
            b: &self.b,
        }
    }
}

/// Adds trained adapters to every layer that `lora.target_modules` names.
#[derive(Debug)]
pub struct Trainable {
    config: Config,
    selection: Selection,
    device: Device,
    dropout: Seed,
    adapted: Mutex<AdaptedLayer>,
}

/// Progress while the model loads.
#[derive(Debug)]
struct AdaptedLayer {
    rng: Rng,
    pairs: Vec<LoraPair>,
    /// Start of the layer that is read now, by its path.
    residual: Option<(String, Residual)>,
    /// Sums of the layers' relative errors.
    errors: ResidualErrors,
}

/// Relative errors of weights in few bits, and of the same with the adapters that start at their residuals.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResidualErrors {
    /// Number of layers.
    pub layers: usize,
    /// Without adapters: the mean over the layers.
    pub before: f64,
    /// With adapters.
    pub after: f64,
}

impl Trainable {
    /// Adapters for `config`, in f32 on `device`. `rng` is used for their initial values only; `families` are those
    /// whose names the `init` file may use.
    ///
    /// # Errors
    /// Same as [`Selection::new`].
    pub fn new(config: &Config, families: &[&'static Names], rng: Rng, device: &Device) -> anyhow::Result<Self> {
        Ok(Self {
            config: config.clone(),
            selection: Selection::new(config, families)?,
            device: device.clone(),
            dropout: Seed::default(),
            adapted: Mutex::new(AdaptedLayer {
                rng,
                pairs: Vec::new(),
                residual: None,
                errors: ResidualErrors::default(),
            }),
        })
    }

    /// Returns the seed of the adapters' dropout. Initially it is unset, and there is no dropout.
    pub fn dropout(&self) -> Seed {
        self.dropout.clone()
    }

    /// Returns the adapters once the model is built, in the order in which it requested them.
    ///
    /// # Errors
    /// Same as [`Selection::finish`].
    pub fn finish(&self) -> anyhow::Result<Vec<LoraPair>> {
        self.selection.finish()?;
        Ok(self.adapted().pairs.clone())
    }

    /// Returns the errors that adapters at residuals start with; None without such.
    pub fn residual_errors(&self) -> Option<ResidualErrors> {
        let ResidualErrors { layers, before, after } = self.adapted().errors;
        let mean = |sum: f64| sum / layers as f64;
        (layers > 0).then(|| ResidualErrors {
            layers,
            before: mean(before),
            after: mean(after),
        })
    }

    fn adapted(&self) -> MutexGuard<'_, AdaptedLayer> {
        self.adapted.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns the initial values of A (rank, in) and B (out, rank).
    fn values(&self, adapted: &mut AdaptedLayer, layer: &LayerId) -> Result<(Tensor, Tensor)> {
        let here = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_device(&self.device);
        if let Some((_, Residual { a, b, .. })) = adapted.residual.take().filter(|(path, _)| path == layer.path) {
            return Ok((here(&a)?, here(&b)?));
        }
        let (in_features, rank) = (layer.in_features(), self.config.rank);
        let (a, b) = ((rank, in_features), (layer.out_features(), rank));
        if let Some((from, to)) = self.selection.init(layer.path).map(Adapter::matrices).transpose()?
            && from.dims() == [a.0, a.1]
            && to.dims() == [b.0, b.1]
        {
            return Ok((here(&from)?, here(&to)?));
        }
        // A layer that the file lacks, or does not fit, is reported by `finish`, with all others.
        if self.selection.starts_from_file() {
            return Ok((
                Tensor::zeros(a, DType::F32, &self.device)?,
                Tensor::zeros(b, DType::F32, &self.device)?,
            ));
        }
        let bound = 1.0 / (in_features as f64).sqrt();
        let a_values = adapted.rng.uniform(-bound, bound, a.0 * a.1);
        Ok((
            Tensor::from_vec(a_values, a, &self.device)?,
            Tensor::zeros(b, DType::F32, &self.device)?,
        ))
    }
}

impl Adapt for Trainable {
    fn needs_dense(&self, layer: &LayerId) -> Result<bool> {
        Ok(self.selection.starts_from_residual() && self.selection.targets(layer)?)
    }

    fn quantized(&self, layer: &LayerId, dense: &Tensor, stored: &dyn StoredMatrix) -> Result<()> {
        if !self.needs_dense(layer)? {
            return Ok(());
        }
        let mut adapted = self.adapted();
        let residual = Residual::new(dense, stored, self.config.rank, self.config.scale(), &mut adapted.rng)?;
        adapted.errors.layers += 1;
        adapted.errors.before += residual.before;
        adapted.errors.after += residual.after;
        adapted.residual = Some((layer.path.to_string(), residual));
        Ok(())
    }

    fn adapt(&self, layer: &LayerId) -> Result<Vec<LoraLayer>> {
        if !self.selection.selects(layer)? {
            return Ok(Vec::new());
        }
        let mut adapted = self.adapted();
        let (a, b) = self.values(&mut adapted, layer)?;
        let pair = LoraPair {
            layer: layer.path.to_string(),
            input: layer.weight.iter().skip(1).copied().collect(),
            a: Var::from_tensor(&a)?,
            b: Var::from_tensor(&b)?,
        };
        let adapter = LoraLayer {
            a: pair.a.as_tensor().clone(),
            b: pair.b.as_tensor().clone(),
            scale: self.config.scale(),
            dropout: (self.config.dropout > 0.0).then(|| Dropout {
                probability: self.config.dropout,
                seed: self.dropout.clone(),
                layer: adapted.pairs.len() as u64,
            }),
        };
        adapted.pairs.push(pair);
        Ok(vec![adapter])
    }
}
