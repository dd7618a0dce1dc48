//! Low-rank adapters: `y = W x + (alpha / rank) B A x`.  arXiv:2106.09685

pub mod adapters;
pub mod bytes;
pub mod comfyui;
pub mod diffusers;
pub mod file;
pub mod format;
pub mod frozen;
pub mod fused;
pub mod genmo;
pub mod inspect;
pub mod kohya;
pub mod merge;
mod metadata;
pub mod names;
mod parts;
pub mod residual;
pub mod resize;
pub mod scaled_file;
mod scales;
pub mod selection;
mod settings;
mod split;
mod svd;
pub mod target;
pub mod trainable;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problems::Problems;

pub use scaled_file::ScaledFile;
pub use target::TargetModules;

/// `lora:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Rank of the adapters.
    pub rank: usize,
    /// Alpha: the adapters' output is scaled by alpha / rank.
    pub alpha: f64,
    /// Scale by alpha / sqrt(rank) instead, which keeps large ranks learning.
    pub use_rslora: bool,
    /// Probability with which an element of an adapter's input is set to 0 in training.
    pub dropout: f64,
    /// Linear layers that get an adapter: a list of name suffixes, or one regular expression that matches whole names,
    /// or `all-linear`.
    pub target_modules: TargetModules,
    /// An adapter file of any format to start from, or a folder with one; or `residual`: the best approximation of this
    /// rank of what the frozen weights lose while they are stored in few bits by `model.quantization`. (A file of that name
    /// is `./residual`.)
    #[schemars(with = "Option<PathBuf>")]
    pub init: Option<Init>,
    /// Adapter files that stay as they are, and are added to the weights while the model loads, in training and in validation:
    /// `FILE` or `FILE=SCALE`. Sample with them and with what was trained.
    #[schemars(with = "Vec<String>")]
    pub frozen: Vec<ScaledFile>,
}

/// Start of adapters, if it is not random.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub enum Init {
    /// Loss of the frozen weights in few bits ([`residual`]).
    Residual,
    /// An adapter file, or a folder with one.
    File(PathBuf),
}

/// Name of [`Init::Residual`].
const RESIDUAL: &str = "residual";

impl From<PathBuf> for Init {
    fn from(path: PathBuf) -> Self {
        match path.to_str() {
            Some(RESIDUAL) => Self::Residual,
            _ => Self::File(path),
        }
    }
}

impl From<Init> for PathBuf {
    fn from(init: Init) -> Self {
        match init {
            Init::Residual => RESIDUAL.into(),
            Init::File(path) => path,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let names = ["to_q", "to_k", "to_v", "to_out.0"];
        Self {
            rank: 128,
            alpha: 128.0,
            use_rslora: false,
            dropout: 0.0,
            target_modules: TargetModules::Suffixes(names.map(String::from).to_vec()),
            init: None,
            frozen: Vec::new(),
        }
    }
}

impl Config {
    /// Checks for values that parse but make no sense, by path below `lora`.
    pub fn check(&self, problems: &mut Problems) {
        problems.at_least_one("rank", self.rank);
        problems.above_zero("alpha", self.alpha);
        problems.below_one("dropout", self.dropout);
        problems.failed("target_modules", self.target_modules.matcher());
    }

    /// Returns the factor of the adapters' output.
    pub fn scale(&self) -> f64 {
        scale(self.alpha, self.rank, self.use_rslora)
    }
}

/// Returns alpha / rank, or alpha / sqrt(rank) for rank-stabilised adapters.  arXiv:2312.03732
pub fn scale(alpha: f64, rank: usize, use_rslora: bool) -> f64 {
    let rank = rank as f64;
    alpha / if use_rslora { rank.sqrt() } else { rank }
}
