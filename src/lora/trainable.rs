//! The adapters that learn: variables planted on a model while it loads.
//!
//! A starts as PEFT has it, uniform within +-1/sqrt(in) (`kaiming_uniform_` with a = sqrt(5)), and B at zero, so the
//! model starts as it was. All A are drawn from one stream, one after the other as the model asks for its layers, each
//! as torch's `uniform_` draws it: with another order of loading they would be others. With `lora.init` both come from
//! that file, and nothing is drawn.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Error, Result, Tensor, Var};

use super::adapters::{Adapter, AdapterFile};
use super::diffusers::Named;
use super::names::Names;
use super::target::{self, Matcher};
use super::{Config, file};
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
    targets: Matcher,
    init: Option<AdapterFile>,
    device: Device,
    dropout: Seed,
    residency: Residency,
    planted: Mutex<Planted>,
}

/// What has happened while the model loads.
#[derive(Debug)]
struct Planted {
    rng: Rng,
    /// The paths of all linear layers, targets or not.
    seen: Vec<String>,
    pairs: Vec<Pair>,
}

impl Trainable {
    /// Adapters as `config` has them, in f32 on `device`. `rng` is used for their first values only; `families` are those
    /// whose names the `init` file may use.
    ///
    /// # Errors
    /// Bad `target_modules`; an `init` file that cannot be read, or whose rank or scale are not the run's.
    pub fn new(config: &Config, families: &[&'static Names], rng: Rng, device: &Device) -> anyhow::Result<Self> {
        let targets = config.target_modules.matcher();
        let targets = targets.map_err(|message| anyhow::anyhow!("lora.target_modules: {message}"))?;
        let init = config
            .init
            .as_deref()
            .map(|path| file::read(path, families)?.apply(path, 1.0));
        let init = init.transpose().context("lora.init")?;
        if let Some(file) = &init {
            check_init(file, config)?;
        }
        Ok(Self {
            config: config.clone(),
            targets,
            init,
            device: device.clone(),
            dropout: Seed::default(),
            residency: Residency::Whole,
            planted: Mutex::new(Planted {
                rng,
                seen: Vec::new(),
                pairs: Vec::new(),
            }),
        })
    }

    /// The same, on a model whose frozen blocks live so.
    pub fn with_residency(mut self, residency: Residency) -> Self {
        self.residency = residency;
        self
    }

    /// The seed of the adapters' dropout. Unset, as it is at first, nothing is dropped.
    pub fn dropout(&self) -> Seed {
        self.dropout.clone()
    }

    /// Once the model stands: its adapters, in the order in which it asked for them.
    ///
    /// # Errors
    /// A target that no layer matched, with what could have; adapters in the `init` file for other layers, and layers
    /// that the file has none for.
    pub fn finish(&self) -> anyhow::Result<Vec<Pair>> {
        let planted = self.planted();
        let idle = self.targets.idle(&planted.seen)?;
        if !idle.is_empty() {
            ensure!(
                !planted.seen.is_empty(),
                "the model has no linear layer that could be trained"
            );
            bail!(
                "lora.target_modules: no layer matches '{}'; the model's linear layers end in {}, the first is {}",
                idle.join("', '"),
                target::kinds(&planted.seen),
                planted.seen[0]
            );
        }
        if let Some(file) = &self.init {
            check_layers(file, &planted.pairs)?;
        }
        Ok(planted.pairs.clone())
    }

    fn planted(&self) -> MutexGuard<'_, Planted> {
        self.planted.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The first values of A (rank, in) and B (out, rank).
    fn values(&self, rng: &mut Rng, path: &str, in_features: usize, out_features: usize) -> Result<(Tensor, Tensor)> {
        let (a, b) = ((self.config.rank, in_features), (out_features, self.config.rank));
        if let Some(file) = &self.init {
            // A layer that the file lacks is told of by `finish`, with all others.
            if let Some(Adapter { a: from, b: to, .. }) = file.layers.get(path) {
                if from.dims() != [a.0, a.1] || to.dims() != [b.0, b.1] {
                    return Err(Error::Msg(format!(
                        "lora.init: {}: the adapter of {path} is {:?} and {:?}, but the layer needs {a:?} and {b:?}",
                        file.path.display(),
                        from.dims(),
                        to.dims()
                    )));
                }
                let here = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_device(&self.device);
                return Ok((here(from)?, here(to)?));
            }
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
        let mut planted = self.planted();
        planted.seen.push(path.to_string());
        if !self
            .targets
            .matches(path)
            .map_err(|error| Error::Msg(error.to_string()))?
        {
            return Ok(Vec::new());
        }
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
        self.residency.clone()
    }
}

/// `torch.empty(n).uniform_(low, high)`, which rounds once.
fn uniform(rng: &mut Rng, low: f64, high: f64, n: usize) -> Vec<f32> {
    let (low, high) = (low as f32, high as f32);
    rng.rand(n).into_iter().map(|u| u.mul_add(high - low, low)).collect()
}

/// Whether adapters from the file can go on in this run: rank and scale.
fn check_init(file: &AdapterFile, config: &Config) -> anyhow::Result<()> {
    let shown = file.path.display();
    if let Some(first) = file.deltas.keys().next() {
        bail!(
            "lora.init: {shown}: {first} is added to as a whole, and {} parameters more, which do not learn; fold the file into \
             the model with vtrain lora merge, and train on that",
            file.deltas.len() - 1
        );
    }
    for (layer, adapter) in &file.layers {
        let rank = adapter.rank();
        ensure!(
            rank == config.rank,
            "lora.init: {shown}: the adapter of {layer} has rank {rank}, but lora.rank is {}",
            config.rank
        );
        ensure!(
            adapter.alpha == config.alpha,
            "lora.init: {shown}: the adapter of {layer} has alpha {}, but lora.alpha is {}; make them equal, since alpha \
             scales what was learned",
            adapter.alpha,
            config.alpha
        );
        ensure!(
            adapter.use_rslora == config.use_rslora,
            "lora.init: {shown}: was trained with use_rslora: {}, but lora.use_rslora is {}",
            adapter.use_rslora,
            config.use_rslora
        );
    }
    Ok(())
}

/// Whether the file's layers are those that the run trains.
fn check_layers(file: &AdapterFile, pairs: &[Pair]) -> anyhow::Result<()> {
    let shown = file.path.display();
    let trained: BTreeSet<&String> = pairs.iter().map(|pair| &pair.layer).collect();
    let missing: Vec<_> = trained
        .iter()
        .filter(|layer| !file.layers.contains_key(**layer))
        .collect();
    if let Some(first) = missing.first() {
        bail!(
            "lora.init: {shown}: {} of {} layers have no adapter in this file, first {first}; lora.target_modules must \
             name the layers that it was trained on",
            missing.len(),
            trained.len()
        );
    }
    let extra: Vec<&String> = file.layers.keys().filter(|layer| !trained.contains(layer)).collect();
    if let Some(first) = extra.first() {
        bail!(
            "lora.init: {shown}: {} of {} adapters belong to layers that this run does not train, first {first}; \
             lora.target_modules must name them, too",
            extra.len(),
            file.layers.len()
        );
    }
    Ok(())
}
