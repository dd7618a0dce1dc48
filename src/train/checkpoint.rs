//! What is kept so that a run can go on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `checkpoint:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Steps between checkpoints.
    pub every: usize,
    /// How many of the newest are kept.
    pub limit: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { every: 500, limit: 2 }
    }
}

impl Config {
    /// Values that parse but make no sense, by path below `checkpoint`.
    pub fn check(&self) -> Vec<(String, String)> {
        [("every", self.every), ("limit", self.limit)]
            .into_iter()
            .filter(|(_, value)| *value == 0)
            .map(|(key, _)| (key.to_string(), "must be at least 1, got 0".to_string()))
            .collect()
    }
}
