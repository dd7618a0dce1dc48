use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub path: PathBuf,
    pub buckets: Vec<[usize; 3]>,
    pub repeats: usize,
    pub captions: Option<String>,
    pub videos: Option<String>,
    pub id_token: Option<String>,
}
impl Config {
    pub fn check(&self, _at: &str, _p: &mut Vec<(String, String)>) {}
}
