//! What an adapter file says of itself, for people and programs.

use std::collections::BTreeMap;

use candle_core::{DType, Result};
use serde::Serialize;

use super::adapters::Adapter;
use super::bytes::About;
use super::file::{Read, Strange};
use super::format::Format;
use super::target;

/// `vtrain lora inspect --json`.
#[derive(Debug, Serialize)]
pub struct Report {
    pub format: Format,
    /// Names in run files. Several where the names fit several families, none where they fit none.
    pub families: Vec<&'static str>,
    pub layers: BTreeMap<String, Layer>,
    /// Where the header has one.
    pub trigger: Option<String>,
    /// What else the header says.
    pub metadata: About,
    /// What would not be applied, and why.
    pub not_applied: Vec<Strange>,
}

/// One adapter.
#[derive(Debug, Clone, Serialize)]
pub struct Layer {
    pub rank: usize,
    pub alpha: f64,
    pub use_rslora: bool,
    /// What B A is multiplied by.
    pub scale: f64,
    pub in_features: usize,
    pub out_features: usize,
    pub dtype: &'static str,
    /// Frobenius norm of the scaled product; none where it is not finite.
    pub norm: Option<f64>,
}

/// Keys of trigger words that trainers write.
const TRIGGERS: [&str; 4] = ["modelspec.trigger_phrase", "trigger_word", "trigger", "instance_prompt"];

impl Report {
    /// Of what was read. `misfits` is asked of every layer why it would not fit the model at hand.
    ///
    /// # Errors
    /// Arithmetic that fails.
    pub fn of(read: &Read, misfit: impl Fn(&str, &Layer) -> Option<String>) -> Result<Self> {
        let mut not_applied = read.strange.clone();
        let mut layers = BTreeMap::new();
        for (name, adapter) in &read.layers {
            let layer = Layer::of(adapter)?;
            let why = misfit(name, &layer).or_else(|| {
                let broken = layer.norm.is_none();
                broken.then(|| "holds a number that is not finite".to_string())
            });
            not_applied.extend(why.map(|why| Strange {
                name: name.clone(),
                why,
            }));
            layers.insert(name.clone(), layer);
        }
        let trigger = TRIGGERS.iter().find_map(|key| read.about.get(*key)).cloned();
        Ok(Self {
            format: read.format,
            families: read.families.iter().map(|names| names.family).collect(),
            layers,
            trigger,
            metadata: read.about.clone(),
            not_applied,
        })
    }

    /// Layers by the ends of their names.
    pub fn kinds(&self) -> BTreeMap<&str, Vec<&Layer>> {
        let mut kinds: BTreeMap<&str, Vec<&Layer>> = BTreeMap::new();
        for (name, layer) in &self.layers {
            kinds.entry(target::end(name)).or_default().push(layer);
        }
        kinds
    }
}

impl Layer {
    fn of(adapter: &Adapter) -> Result<Self> {
        let norm = adapter.scale().abs() * product_norm(adapter)?;
        Ok(Self {
            rank: adapter.rank(),
            alpha: adapter.alpha,
            use_rslora: adapter.use_rslora,
            scale: adapter.scale(),
            in_features: adapter.a.dim(1)?,
            out_features: adapter.b.dim(0)?,
            dtype: adapter.a.dtype().as_str(),
            norm: norm.is_finite().then_some(norm),
        })
    }
}

/// |B A|² is the sum of (BᵀB) and (A Aᵀ), number times number: the product itself is not formed.
fn product_norm(adapter: &Adapter) -> Result<f64> {
    let (a, b) = (adapter.a.to_dtype(DType::F64)?, adapter.b.to_dtype(DType::F64)?);
    let squared = (b.t()?.matmul(&b)? * a.matmul(&a.t()?)?)?.sum_all()?; // (rank, rank)
    let squared = squared.to_scalar::<f64>()?;
    Ok(if squared < 0.0 { 0.0 } else { squared.sqrt() }) // rounding may fall below 0
}
