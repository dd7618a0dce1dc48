//! Description of an adapter file, for people and programs.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};
use serde::Serialize;

use super::adapters::{Adapter, Change, changes};
use super::bytes::Metadata;
use super::file::{ParsedAdapter, UnsupportedTensor};
use super::format::Format;
use super::target;

/// `vtrain lora inspect --json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Format of the file's names.
    pub format: Format,
    /// Names in run files. Several if the names fit several families, none if they fit none.
    pub families: Vec<&'static str>,
    /// Adapters by the layer's path.
    pub layers: BTreeMap<String, Layer>,
    /// Differences of whole parameters.
    pub deltas: BTreeMap<String, Delta>,
    /// True if some alpha is missing, although files of this format have it.
    pub alpha_is_a_guess: bool,
    /// Trigger words of the header, if any.
    pub trigger: Option<String>,
    /// Other metadata of the header.
    pub metadata: Metadata,
    /// Tensors that would not be applied, and why.
    pub not_applied: Vec<UnsupportedTensor>,
}

/// One adapter.
#[derive(Debug, Clone, Serialize)]
pub struct Layer {
    /// Rank of the product.
    pub rank: usize,
    /// Alpha, which the scale is computed from.
    pub alpha: f64,
    /// True for rank-stabilised scaling.
    pub use_rslora: bool,
    /// Factor of B A.
    pub scale: f64,
    /// Input features of the layer.
    pub in_features: usize,
    /// Output features of the layer.
    pub out_features: usize,
    /// Number format of A.
    pub dtype: &'static str,
    /// Frobenius norm of the scaled product; None if it is not finite.
    pub norm: Option<f64>,
}

/// Difference of one parameter.
#[derive(Debug, Clone, Serialize)]
pub struct Delta {
    /// Shape of the difference.
    pub shape: Vec<usize>,
    /// Number format of the difference.
    pub dtype: &'static str,
    /// Frobenius norm.
    pub norm: f64,
}

/// Keys of trigger words that trainers write.
const TRIGGERS: [&str; 4] = ["modelspec.trigger_phrase", "trigger_word", "trigger", "instance_prompt"];

impl Report {
    /// Describes a parsed file. `misfit` returns why a change would not fit the given model.
    ///
    /// # Errors
    /// Fails if a computation fails.
    pub fn of(read: &ParsedAdapter, misfit: impl Fn(&str, Change) -> Option<String>) -> Result<Self> {
        let mut not_applied = read.strange.clone();
        let (mut layers, mut deltas) = (BTreeMap::new(), BTreeMap::new());
        for (name, change) in changes(&read.layers, &read.deltas) {
            let mut why = misfit(name, change);
            match change {
                Change::LoraLayer(adapter) => {
                    let layer = Layer::of(adapter)?;
                    let broken = layer.norm.is_none();
                    why = why.or_else(|| broken.then(|| "holds a number that is not finite".to_string()));
                    layers.insert(name.clone(), layer);
                }
                Change::Whole(delta) => drop(deltas.insert(name.clone(), Delta::of(delta)?)),
            }
            not_applied.extend(why.map(|why| UnsupportedTensor {
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

    /// Groups layers by the ends of their names.
    pub fn kinds(&self) -> BTreeMap<&str, Vec<&Layer>> {
        let mut kinds: BTreeMap<&str, Vec<&Layer>> = BTreeMap::new();
        for (name, layer) in &self.layers {
            kinds.entry(target::end(name)).or_default().push(layer);
        }
        kinds
    }

    /// Groups differences by the ends of their parameters' names: `norm_q.weight`.
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

/// |B A|² is the sum of the elementwise product of (BᵀB) and (A Aᵀ): the product itself is not computed.
fn product_norm(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let squared = (b.t()?.matmul(&b)? * a.matmul(&a.t()?)?)?.sum_all()?; // (rank, rank)
    let squared = squared.to_scalar::<f64>()?;
    Ok(if squared < 0.0 { 0.0 } else { squared.sqrt() }) // rounding may fall below 0
}
