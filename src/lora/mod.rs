//! Low-rank adapters: `y = W x + (alpha / rank) B A x`.  arXiv:2106.09685

pub mod adapters;
pub mod diffusers;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `lora:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Width of the adapters.
    pub rank: usize,
    /// The adapters' output is scaled by alpha / rank.
    pub alpha: f64,
    /// Which linear layers get an adapter: a list of name suffixes, or one regular expression that matches whole names.
    pub target_modules: TargetModules,
    /// An adapter file to start from.
    pub init: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let names = ["to_q", "to_k", "to_v", "to_out.0"];
        Self {
            rank: 128,
            alpha: 128.0,
            target_modules: TargetModules::Suffixes(names.map(String::from).to_vec()),
            init: None,
        }
    }
}

impl Config {
    /// Values that parse but make no sense, by path below `lora`.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        if self.rank == 0 {
            wrong.push(("rank".into(), "must be at least 1, got 0".into()));
        }
        if self.alpha <= 0.0 {
            wrong.push(("alpha".into(), format!("must be above 0, got {}", self.alpha)));
        }
        let empty = match &self.target_modules {
            TargetModules::Suffixes(names) => names.is_empty() || names.iter().any(|name| name.trim().is_empty()),
            TargetModules::Regex(pattern) => pattern.trim().is_empty(),
        };
        if empty {
            wrong.push((
                "target_modules".into(),
                "must name at least one layer, and no name may be empty".into(),
            ));
        }
        wrong
    }
}

/// As PEFT reads `target_modules`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a list of layer names, or one regular expression")]
pub enum TargetModules {
    /// A layer matches when its name is one of these or ends in `.` and one of these.
    Suffixes(Vec<String>),
    /// A layer matches when the whole of its name does.
    Regex(String),
}
