//! Watching a run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `tracking:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Write TensorBoard events beside `metrics.jsonl`.
    pub tensorboard: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { tensorboard: true }
    }
}
