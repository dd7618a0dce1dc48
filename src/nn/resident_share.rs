//! How many of a model's streamed blocks stay in memory all the same.

use std::borrow::Cow;

use candle_core::Device;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::process::memory;

/// Word for [`ResidentShare::Auto`].
const AUTO: &str = "auto";

/// Part of the free memory that blocks may stay in by themselves: the rest is for all that is computed.
const PART_OF_FREE: usize = 2;

/// Share of the streamed blocks that stay in memory all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum ResidentShare {
    /// As many as there is room for.
    #[default]
    Auto,
    /// From 0, none, to 1, all.
    Share(f64),
}

impl Serialize for ResidentShare {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Share(share) => serializer.serialize_f64(*share),
        }
    }
}

impl<'de> Deserialize<'de> for ResidentShare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        match (value.as_f64(), value.as_str()) {
            (Some(share), _) => Ok(Self::Share(share)),
            (None, Some(AUTO)) => Ok(Self::Auto),
            _ => {
                let message = format!("must be auto, or a share between 0 and 1, got {value}");
                Err(serde::de::Error::custom(message))
            }
        }
    }
}

impl JsonSchema for ResidentShare {
    fn schema_name() -> Cow<'static, str> {
        "ResidentShare".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "string", "enum": [AUTO]},
            {"type": "number", "minimum": 0, "maximum": 1}
        ]})
    }
}

impl ResidentShare {
    /// Returns the number of blocks that stay, of blocks of these sizes, of which `passing` pass through memory besides;
    /// `free` are the free bytes, if they are known.
    pub fn of(self, sizes: &[usize], passing: usize, free: Option<u64>) -> usize {
        let room = match self {
            Self::Share(share) => return (share * sizes.len() as f64).round() as usize,
            Self::Auto => free.map_or(0, |free| usize::try_from(free).unwrap_or(usize::MAX)) / PART_OF_FREE,
        };
        let largest = sizes.iter().copied().max().unwrap_or(0).max(1);
        match sizes.iter().sum::<usize>() <= room {
            true => sizes.len(),
            false => (room / largest).saturating_sub(passing).min(sizes.len()),
        }
    }
}

/// Returns the free bytes of a device.
pub fn free_memory(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::ops::cuda::memory::free(device).ok();
    }
    let free = device.is_cpu().then(memory::free).flatten();
    free.map(|free| free.bytes)
}
