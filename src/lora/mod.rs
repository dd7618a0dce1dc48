//! Low-rank adapters: `y = W x + (alpha / rank) B A x`.  arXiv:2106.09685

pub mod adapters;
pub mod bytes;
pub mod comfyui;
pub mod diffusers;
pub mod file;
pub mod format;
pub mod inspect;
pub mod kohya;
pub mod merge;
mod metadata;
pub mod names;
mod parts;
pub mod resize;
mod scales;
pub mod selection;
mod settings;
mod svd;
pub mod target;
pub mod trainable;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// An adapter file of any format to start from, or a folder with one.
    pub init: Option<PathBuf>,
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
        }
    }
}

impl Config {
    /// Returns values that parse but make no sense, by path below `lora`.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        if self.rank == 0 {
            wrong.push(("rank".into(), "must be at least 1, got 0".into()));
        }
        if self.alpha <= 0.0 {
            wrong.push(("alpha".into(), format!("must be above 0, got {}", self.alpha)));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let message = format!("must be at least 0 and below 1, got {}", self.dropout);
            wrong.push(("dropout".into(), message));
        }
        if let Err(message) = self.target_modules.matcher() {
            wrong.push(("target_modules".into(), message));
        }
        wrong
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
