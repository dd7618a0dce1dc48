//! Memory on the device of a run: this process's, or a GPU's as reported by its driver.

use candle_core::Device;

use crate::nn::Load;
use crate::nn::vae_memory::VaeMemory;
use crate::process::memory;

pub use crate::nn::resident_share::free_memory as free;

/// Returns the peak bytes in use: of this process, or of the GPU's pool.
pub fn peak(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::ops::cuda::memory::peak(device).ok();
    }
    let resident = device.is_cpu().then(memory::resident).flatten();
    resident.map(|memory| memory.peak)
}

/// Returns the same, with the memory that is free now for the autoencoder.
pub fn with_free_memory(load: &Load) -> Load {
    let free = free(&load.device);
    load.with_vae(VaeMemory { free, ..load.vae })
}
