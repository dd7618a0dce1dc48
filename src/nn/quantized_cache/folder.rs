//! Setting of the folder of the cache.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::paths;

const AUTO: &str = "auto";
const NONE: &str = "none";

/// `model.quantization_cache`: the folder of the cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CacheFolder {
    /// `vtrain/quantized` in the user's folder of caches.
    #[default]
    Auto,
    /// No cache.
    None,
    /// This folder.
    At(PathBuf),
}

impl CacheFolder {
    /// Returns the folder; None for no cache, and where the user has no folder of caches.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Auto => Some(paths::user_caches()?.join("vtrain").join("quantized")),
            Self::None => None,
            Self::At(folder) => Some(folder.clone()),
        }
    }

    /// Makes the path of a folder absolute.
    pub fn resolve(&mut self, base: &Path) {
        if let Self::At(folder) = self {
            *folder = paths::normalize(&base.join(&*folder));
        }
    }
}

impl FromStr for CacheFolder {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            AUTO => Self::Auto,
            NONE => Self::None,
            folder => Self::At(folder.into()),
        })
    }
}

impl fmt::Display for CacheFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str(AUTO),
            Self::None => f.write_str(NONE),
            Self::At(folder) => folder.display().fmt(f),
        }
    }
}

impl Serialize for CacheFolder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CacheFolder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Ok(folder) = String::deserialize(deserializer)?.parse();
        Ok(folder)
    }
}

impl JsonSchema for CacheFolder {
    fn schema_name() -> Cow<'static, str> {
        "CacheFolder".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string"})
    }
}
