//! Facts by which a family is recognised and opened.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::FamilyName;
use super::family::Family;
use super::footprint::Footprint;
use super::synthetic::SyntheticBatch;
use crate::data::Bucket;
use crate::lora::names::Names;
use crate::nn::adapter::Adapt;
use crate::nn::weights::Reading;
use crate::nn::{WeightFolder, Weights};

/// Facts about a family that need no checkpoint; each family declares them in its `mod.rs`.
pub struct FamilySpec {
    /// Name in run files.
    pub name: FamilyName,
    /// Display name.
    pub title: &'static str,
    /// Names of its layers, in diffusers and elsewhere.
    pub names: &'static Names,
    /// Prefix of the `_class_name` of its pipelines in `model_index.json`.
    pub pipeline: &'static str,
    /// `_class_name` in `transformer/config.json`.
    pub transformer: &'static str,
    /// Substring of the names of its published repositories, in lower case.
    pub repository: &'static str,
    /// Opens a checkpoint of the family.
    pub open: Open,
    /// Builds the transformer alone, with random input.
    pub synthetic: OpenSynthetic,
    /// Encoding sizes of the published checkpoints.
    pub footprint: Footprint,
    /// Returns the encoding sizes of the checkpoint in a directory; None if its configs cannot be read.
    pub footprint_of: fn(&Path) -> Option<Footprint>,
}

/// Opens a checkpoint by its directory; configs of missing parts may be remembered.
pub type Open = fn(&WeightFolder, &Reading, &CachedConfigs) -> anyhow::Result<Box<dyn Family>>;

/// Builds the transformer whose config is in a folder, and an input of several clips of a bucket.
pub type OpenSynthetic = fn(&Path, Weights, Option<Arc<dyn Adapt>>, Bucket, usize) -> anyhow::Result<SyntheticBatch>;

impl fmt::Debug for FamilySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title)
    }
}

/// Texts of the parts' `config.json`, by the part's name, which replace parts deleted after encoding.
pub type CachedConfigs = BTreeMap<String, String>;
