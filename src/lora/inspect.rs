//! What an adapter file says of itself, for people and programs.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};
use serde::Serialize;

use super::adapters::{Adapter, Change, changes};
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
    /// What is added to whole parameters.
    pub deltas: BTreeMap<String, Delta>,
    /// Whether some alpha is written nowhere, although files of this format have it beside them.
    pub alpha_is_a_guess: bool,
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

/// The difference of one parameter.
#[derive(Debug, Clone, Serialize)]
pub struct Delta {
    pub shape: Vec<usize>,
    pub dtype: &'static str,
    /// Frobenius norm.
    pub norm: f64,
}

/// Keys of trigger words that trainers write.
const TRIGGERS: [&str; 4] = ["modelspec.trigger_phrase", "trigger_word", "trigger", "instance_prompt"];

impl Report {
    /// Tells of what was read. `misfit` is asked of every change why it would not fit the model at hand.
    ///
    /// # Errors
    /// Arithmetic that fails.
    pub fn of(read: &Read, misfit: impl Fn(&str, Change) -> Option<String>) -> Result<Self> {
        let mut not_applied = read.strange.clone();
        let (mut layers, mut deltas) = (BTreeMap::new(), BTreeMap::new());
        for (name, change) in changes(&read.layers, &read.deltas) {
            let mut why = misfit(name, change);
            match change {
                Change::LowRank(adapter) => {
                    let layer = Layer::of(adapter)?;
                    let broken = layer.norm.is_none();
                    why = why.or_else(|| broken.then(|| "holds a number that is not finite".to_string()));
                    layers.insert(name.clone(), layer);
                }
                Change::Whole(delta) => drop(deltas.insert(name.clone(), Delta::of(delta)?)),
            }
            not_applied.extend(why.map(|why| Strange {
                name: name.clone(),
                why,
            }));
        }
        let trigger = TRIGGERS.iter().find_map(|key| read.about.get(*key)).cloned();
        Ok(Self {
            format: read.format,
            families: read.families.iter().map(|names| names.family).collect(),
            layers,
            deltas,
            alpha_is_a_guess: read.alpha_is_a_guess,
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

    /// Differences by the ends of their parameters' names: `norm_q.weight`.
    pub fn delta_kinds(&self) -> BTreeMap<&str, Vec<&Delta>> {
        let mut kinds: BTreeMap<&str, Vec<&Delta>> = BTreeMap::new();
        for (name, delta) in &self.deltas {
            let layer = name
                .strip_suffix(".weight")
                .or(name.strip_suffix(".bias"))
                .unwrap_or(name);
            let start = layer.len() - target::end(layer).len();
            kinds.entry(&name[start..]).or_default().push(delta);
        }
        kinds
    }
}

impl Delta {
    fn of(delta: &Tensor) -> Result<Self> {
        let norm = delta.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        Ok(Self {
            shape: delta.dims().to_vec(),
            dtype: delta.dtype().as_str(),
            norm: norm.sqrt(),
        })
    }
}

impl Layer {
    fn of(adapter: &Adapter) -> Result<Self> {
        let (a, b) = adapter.matrices()?;
        let norm = adapter.scale().abs() * product_norm(&a, &b)?;
        Ok(Self {
            rank: adapter.rank(),
            alpha: adapter.alpha,
            use_rslora: adapter.use_rslora,
            scale: adapter.scale(),
            in_features: a.dim(1)?,
            out_features: b.dim(0)?,
            dtype: adapter.a.dtype().as_str(),
            norm: norm.is_finite().then_some(norm),
        })
    }
}

/// |B A|² is the sum of (BᵀB) and (A Aᵀ), number times number: the product itself is not formed.
fn product_norm(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let squared = (b.t()?.matmul(&b)? * a.matmul(&a.t()?)?)?.sum_all()?; // (rank, rank)
    let squared = squared.to_scalar::<f64>()?;
    Ok(if squared < 0.0 { 0.0 } else { squared.sqrt() }) // rounding may fall below 0
}
