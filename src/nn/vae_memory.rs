//! Savings of memory in video autoencoders.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Use of overlapping tiles for large clips, which change the result slightly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected auto, true or false")]
pub enum VaeTiling {
    /// Always, where a clip is larger than a tile, or never.
    Always(bool),
    /// By a rule.
    Named(NamedTiling),
}

/// Uses of tiles with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NamedTiling {
    /// Where whole clips do not fit in memory.
    Auto,
}

impl VaeTiling {
    /// Tiles where whole clips do not fit in memory.
    pub const AUTO: Self = Self::Named(NamedTiling::Auto);
}

impl FromStr for VaeTiling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::AUTO),
            "true" => Ok(Self::Always(true)),
            "false" => Ok(Self::Always(false)),
            _ => Err(format!("'{text}' is none of auto, true, false")),
        }
    }
}

/// Savings of memory, and the memory there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaeMemory {
    /// Large clips in overlapping tiles.
    pub tiling: VaeTiling,
    /// The clips of a batch one by one.
    pub slicing: bool,
    /// Free bytes before the autoencoder loads; None if unknown: then everything fits.
    pub free: Option<u64>,
}

impl VaeMemory {
    /// Whole frames and batches.
    pub const WHOLE: Self = Self {
        tiling: VaeTiling::Always(false),
        slicing: false,
        free: None,
    };

    /// Returns true if frames are cut that take so many bytes whole.
    pub fn cuts(&self, whole: u64) -> bool {
        match self.tiling {
            VaeTiling::Always(always) => always,
            // An eighth is left for what an estimate cannot know.
            VaeTiling::AUTO => self.free.is_some_and(|free| whole > free.saturating_sub(free / 8)),
        }
    }
}
