//! `device: auto | cpu | cuda | cuda:1`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Where tensors live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    Auto,
    Cpu,
    Cuda(usize),
}

impl Device {
    /// The device itself.
    ///
    /// # Errors
    /// A GPU that is not there, or a build without CUDA.
    pub fn open(self) -> anyhow::Result<candle_core::Device> {
        match self {
            Device::Cpu => Ok(candle_core::Device::Cpu),
            Device::Auto => Ok(candle_core::Device::cuda_if_available(0)?),
            Device::Cuda(index) => candle_core::Device::new_cuda(index)
                .with_context(|| format!("cuda:{index} cannot be used; this may be a build without CUDA")),
        }
    }
}

impl Device {
    /// The device of one of several processes on a machine, by its number there: each has a GPU of its own. One that is
    /// named by number is left to all of them.
    pub fn of_rank(self, local_rank: usize) -> Device {
        match self {
            Device::Auto if local_rank > 0 && candle_core::utils::cuda_is_available() => Device::Cuda(local_rank),
            device => device,
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no device; use auto, cpu, cuda or cuda:N");
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(wrong),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        device.to_string()
    }
}

impl JsonSchema for Device {
    fn schema_name() -> Cow<'static, str> {
        "Device".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^(auto|cpu|cuda(:[0-9]+)?)$"})
    }
}
