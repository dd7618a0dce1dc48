//! Memory where a run computes: this process's, or a GPU's as its driver tells.

use candle_core::Device;

use crate::process::memory;

/// The most bytes that were in use at once: of this process, or of the GPU's pool.
pub fn peak(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::ops::cuda::memory::peak(device).ok();
    }
    let resident = device.is_cpu().then(memory::resident).flatten();
    resident.map(|memory| memory.peak)
}

/// How many bytes may still be taken.
pub fn free(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::ops::cuda::memory::free(device).ok();
    }
    let free = device.is_cpu().then(memory::free).flatten();
    free.map(|free| free.bytes)
}
