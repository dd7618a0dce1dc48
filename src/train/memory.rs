//! Memory on the device of a run: this process's, or a GPU's as reported by its driver.

use candle_core::Device;

use crate::distributed::Communicator;
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

/// Returns the free bytes that each rank can count on: on a GPU the least that one has, on the CPU an equal part of that.
///
/// # Errors
/// Ranks that cannot be reached.
pub fn least_free(device: &Device, ranks: &dyn Communicator) -> anyhow::Result<Option<u64>> {
    let all = ranks.all_gather(&serde_json::to_vec(&free(device))?)?;
    let all = all.iter().map(|bytes| serde_json::from_slice::<Option<u64>>(bytes));
    let least = all.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().min();
    let sharing = if device.is_cpu() { ranks.world_size() as u64 } else { 1 };
    Ok(least.map(|bytes| bytes / sharing.max(1)))
}
