//! `device: auto | cpu | cuda | cuda:1`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use candle_core::DType;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Device of the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// A GPU if there is one, else the CPU.
    Auto,
    /// Main memory.
    Cpu,
    /// GPU by index.
    Cuda(usize),
}

impl Device {
    /// Opens the device; `auto` takes the first usable GPU, or else the CPU.
    ///
    /// # Errors
    /// Fails for a GPU that does not exist, and in a build without CUDA.
    pub fn open(self) -> anyhow::Result<candle_core::Device> {
        match self {
            Device::Cpu => Ok(candle_core::Device::Cpu),
            Device::Auto if !cfg!(feature = "cuda") => Ok(candle_core::Device::Cpu),
            Device::Auto => Ok(gpu(0).unwrap_or_else(|error| {
                log::info!("no GPU can be used, so this runs on the CPU: {error:#}");
                candle_core::Device::Cpu
            })),
            Device::Cuda(index) => gpu(index),
        }
    }

    /// Returns why the device cannot compute with frozen weights of this type, or None if it can.
    pub fn lacks(self, device: &candle_core::Device, dtype: DType) -> Option<String> {
        match dtype {
            DType::BF16 => without_bf16(device).map(|card| {
                format!("bf16: needs a GPU of compute capability 8.0 or more, and this one has {card}; use f32")
            }),
            _ => None,
        }
    }

    /// Device of one of several processes on a machine, by its local rank: each has its own GPU, even if the first is
    /// named. If each process sees a single GPU, as under some batch systems, it uses that.
    pub fn of_rank(self, local_rank: usize) -> Device {
        match self {
            Device::Auto | Device::Cuda(0) if local_rank > 0 && count() > 0 => Device::Cuda(local_rank % count()),
            device => device,
        }
    }
}

/// Returns the number of GPUs that this process sees.
#[cfg(not(feature = "cuda"))]
fn count() -> usize {
    0
}

#[cfg(feature = "cuda")]
fn count() -> usize {
    let count = cudarc::driver::CudaContext::device_count();
    count.ok().and_then(|count| count.try_into().ok()).unwrap_or(0)
}

/// Returns the compute capability of a GPU that is too old for bf16.
#[cfg(not(feature = "cuda"))]
fn without_bf16(_device: &candle_core::Device) -> Option<String> {
    None
}

#[cfg(feature = "cuda")]
fn without_bf16(device: &candle_core::Device) -> Option<String> {
    use cudarc::driver::sys::CUdevice_attribute as Attribute;
    let stream = device.as_cuda_device().ok()?.cuda_stream();
    let ask = |attribute| stream.context().attribute(attribute).ok();
    let major = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    (major < 8).then(|| format!("{major}.{minor}"))
}

#[cfg(not(feature = "cuda"))]
fn gpu(index: usize) -> anyhow::Result<candle_core::Device> {
    anyhow::bail!(
        "device: cuda:{index} cannot be used: this vtrain was built without CUDA (docs/gpu.md); use cpu or auto"
    )
}

/// Opens a GPU with one stream for everything, which retains freed memory.
#[cfg(feature = "cuda")]
fn gpu(index: usize) -> anyhow::Result<candle_core::Device> {
    use crate::ops::cuda::memory;

    let opened = || {
        let device = candle_core::Device::new_cuda_with_stream(index)?;
        let cuda = device.as_cuda_device()?;
        // SAFETY: there is a single stream, on which everything runs in order.
        unsafe { cuda.disable_event_tracking() };
        memory::keep(cuda)?;
        candle_core::Result::Ok(device)
    };
    opened().map_err(|error| {
        let words = error.to_string();
        let first = words.lines().next().unwrap_or_default(); // the rest is a backtrace, if requested
        anyhow::anyhow!("device: cuda:{index} cannot be used: {first}; is there a GPU with its driver? (docs/gpu.md)")
    })
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a device; use auto, cpu, cuda or cuda:N");
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
