//! Memory on the device of a run: this process's, or a GPU's as reported by its driver.

use candle_core::Device;

use crate::process::memory;

/// Returns the peak bytes in use: of this process, or of the GPU's pool.
pub fn peak(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::ops::cuda::memory::peak(device).ok();
    }
    let resident = device.is_cpu().then(memory::resident).flatten();
    resident.map(|memory| memory.peak)
}

/// Returns the free bytes.
pub fn free(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::ops::cuda::memory::free(device).ok();
    }
    let free = device.is_cpu().then(memory::free).flatten();
    free.map(|free| free.bytes)
}
