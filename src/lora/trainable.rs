//! The adapters that learn: variables planted on a model while it loads.
//!
//! A starts as PEFT has it, uniform within +-1/sqrt(in) (`kaiming_uniform_` with a = sqrt(5)), and B at zero, so the
//! model starts as it was. All A are drawn from one stream, one after the other as the model asks for its layers, each
//! as torch's `uniform_` draws it: with another order of loading they would be others. With `lora.init` both come from
//! that file, and nothing is drawn.

use std::sync::{Mutex, MutexGuard};

use candle_core::{DType, Device, Result, Tensor, Var};

use super::Config;
use super::adapters::Adapter;
use super::diffusers::Named;
use super::names::Names;
use super::selection::Selection;
use crate::nn::dropout::{Dropout, Seed};
use crate::nn::linear::LowRank;
use crate::nn::shards::Residency;
use crate::nn::weights::Planter;
use crate::rng::Rng;

/// The variables of one layer. The model shares their storage.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The layer's path in the checkpoint.
    pub layer: String,
    pub a: Var, // (rank, in)
    pub b: Var, // (out, rank)
}

impl Pair {
    /// The adapter as it is now, to be written.
    pub fn named(&self) -> Named<'_> {
        Named {
            layer: &self.layer,
            a: &self.a,
            b: &self.b,
        }
    }
}

/// Plants adapters that learn on every layer that `lora.target_modules` names.
#[derive(Debug)]
pub struct Trainable {
    config: Config,
    selection: Selection,
    device: Device,
    dropout: Seed,
    planted: Mutex<Planted>,
}

/// What has happened while the model loads.
#[derive(Debug)]
struct Planted {
    rng: Rng,
    pairs: Vec<Pair>,
}

impl Trainable {
    /// Adapters as `config` has them, in f32 on `device`. `rng` is used for their first values only; `families` are those
    /// whose names the `init` file may use.
    ///
    /// # Errors
    /// As [`Selection::new`].
    pub fn new(config: &Config, families: &[&'static Names], rng: Rng, device: &Device) -> anyhow::Result<Self> {
        Ok(Self {
            config: config.clone(),
            selection: Selection::new(config, families)?,
            device: device.clone(),
            dropout: Seed::default(),
            planted: Mutex::new(Planted { rng, pairs: Vec::new() }),
        })
    }

    /// The same, on a model whose frozen blocks live so.
    pub fn with_residency(mut self, residency: Residency) -> Self {
        self.selection = self.selection.with_residency(residency);
        self
    }

    /// The seed of the adapters' dropout. Unset, as it is at first, nothing is dropped.
    pub fn dropout(&self) -> Seed {
        self.dropout.clone()
    }

    /// Once the model stands: its adapters, in the order in which it asked for them.
    ///
    /// # Errors
    /// As [`Selection::finish`].
    pub fn finish(&self) -> anyhow::Result<Vec<Pair>> {
        self.selection.finish()?;
        Ok(self.planted().pairs.clone())
    }

    fn planted(&self) -> MutexGuard<'_, Planted> {
        self.planted.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The first values of A (rank, in) and B (out, rank).
    fn values(&self, rng: &mut Rng, path: &str, in_features: usize, out_features: usize) -> Result<(Tensor, Tensor)> {
        let (a, b) = ((self.config.rank, in_features), (out_features, self.config.rank));
        if let Some(Adapter { a: from, b: to, .. }) = self.selection.init(path)
            && from.dims() == [a.0, a.1]
            && to.dims() == [b.0, b.1]
        {
            let here = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_device(&self.device);
            return Ok((here(from)?, here(to)?));
        }
        // A layer that the file lacks, or does not fit, is told of by `finish`, with all others.
        if self.selection.starts_from_file() {
            return Ok((
                Tensor::zeros(a, DType::F32, &self.device)?,
                Tensor::zeros(b, DType::F32, &self.device)?,
            ));
        }
        let bound = 1.0 / (in_features as f64).sqrt();
        let a_values = uniform(rng, -bound, bound, a.0 * a.1);
        Ok((
            Tensor::from_vec(a_values, a, &self.device)?,
            Tensor::zeros(b, DType::F32, &self.device)?,
        ))
    }
}

impl Planter for Trainable {
    fn plant(&self, path: &str, in_features: usize, out_features: usize) -> Result<Vec<LowRank>> {
        if !self.selection.selects(path, in_features, out_features)? {
            return Ok(Vec::new());
        }
        let mut planted = self.planted();
        let (a, b) = self.values(&mut planted.rng, path, in_features, out_features)?;
        let pair = Pair {
            layer: path.to_string(),
            a: Var::from_tensor(&a)?,
            b: Var::from_tensor(&b)?,
        };
        let adapter = LowRank {
            a: pair.a.as_tensor().clone(),
            b: pair.b.as_tensor().clone(),
            scale: self.config.scale(),
            dropout: (self.config.dropout > 0.0).then(|| Dropout {
                probability: self.config.dropout,
                seed: self.dropout.clone(),
                layer: planted.pairs.len() as u64,
            }),
        };
        planted.pairs.push(pair);
        Ok(vec![adapter])
    }

    fn residency(&self) -> Residency {
        self.selection.residency()
    }
}

/// `torch.empty(n).uniform_(low, high)`, which rounds once.
fn uniform(rng: &mut Rng, low: f64, high: f64, n: usize) -> Vec<f32> {
    let (low, high) = (low as f32, high as f32);
    rng.rand(n).into_iter().map(|u| u.mul_add(high - low, low)).collect()
}
