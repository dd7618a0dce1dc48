//! A transformer without the rest of its checkpoint, and something to run it on: for measuring.
//!
//! Nothing but `transformer/config.json` is needed where the weights are made up.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use candle_core::Tensor;
use serde_json::Value;

use super::denoiser::{Denoiser, Input};
use super::{cogvideox, ltx_video, wan};
use crate::data::Bucket;
use crate::nn::Weights;
use crate::nn::weights::Planter;
use crate::rng::Rng;

/// A transformer, and noise of the shapes that it would be trained on.
pub struct Bare {
    pub denoiser: Box<dyn Denoiser>,
    pub input: Input,
    /// As the prediction's.
    pub target: Tensor,
    pub work: Work,
}

/// How much one sample asks of a transformer, in its large products alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Tokens of text and video.
    pub tokens: usize,
    /// Floating-point operations of the linear layers, forwards.
    pub linear: f64,
    /// Of the products within attention, forwards.
    pub attention: f64,
}

impl Work {
    /// One training step without recomputation: linear layers pass back one gradient (their weights are frozen); attention
    /// has five products on its way back for two on its way forward. Adapters are not counted.
    pub fn step(&self) -> f64 {
        2.0 * self.linear + 3.5 * self.attention
    }
}

/// Builds the transformer below `directory` with `weights`, and draws an input of `batch` clips of a bucket.
///
/// # Errors
/// No readable `transformer/config.json`, a class of no family here, a bucket that does not fit the model.
pub fn open(
    directory: &Path,
    weights: Weights,
    planter: Option<Arc<dyn Planter>>,
    bucket: Bucket,
    batch: usize,
) -> anyhow::Result<Bare> {
    let folder = directory.join("transformer");
    let bare = match class(&folder)?.as_str() {
        "CogVideoXTransformer3DModel" => cogvideox::bare,
        "LTXVideoTransformer3DModel" => ltx_video::bare,
        "WanTransformer3DModel" => wan::bare,
        class => bail!(
            "{}: {class} is of no family that vtrain knows; it knows CogVideoX, LTX-Video and Wan",
            folder.join("config.json").display()
        ),
    };
    bare(&folder, weights, planter, bucket, batch)
}

/// The class of a transformer, as its config names it.
fn class(folder: &Path) -> anyhow::Result<String> {
    let path = folder.join("config.json");
    let shown = path.display();
    let text = std::fs::read_to_string(&path).with_context(|| shown.to_string())?;
    let config: Value = serde_json::from_str(&text).with_context(|| format!("{shown}: not JSON"))?;
    let class = config.get("_class_name").and_then(Value::as_str);
    Ok(class.with_context(|| format!("{shown}: no _class_name"))?.to_string())
}

/// Standard normal numbers, f32, where the weights are.
pub fn noise(rng: &mut Rng, shape: &[usize], weights: &Weights) -> candle_core::Result<Tensor> {
    Tensor::from_vec(rng.randn(shape.iter().product()), shape, weights.device())
}
