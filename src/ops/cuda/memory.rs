//! The device's memory: kept between uses, and how much of it was in use at most.
//!
//! candle allocates by `cudaMallocAsync` from the device's default pool, which hands all that is free back at every
//! synchronisation unless it is told to keep it.

use candle_core::cuda_backend::WrapErr;
use candle_core::{CudaDevice, Result};
use cudarc::driver::result::mem_pool;
use cudarc::driver::{result, sys};

use sys::CUmemPool_attribute_enum as Attribute;

/// Has the pool keep what is free.
///
/// # Errors
/// A device without pools; what the driver refuses.
pub fn keep(device: &CudaDevice) -> Result<()> {
    set(device, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
}

/// The most bytes that were in use at once since the start, or since [`forget_peak`].
///
/// # Errors
/// As [`keep`].
pub fn peak(device: &CudaDevice) -> Result<u64> {
    get(device, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
}

/// The bytes that are in use now.
///
/// # Errors
/// As [`keep`].
pub fn used(device: &CudaDevice) -> Result<u64> {
    get(device, Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
}

/// Begins anew to look for the most.
///
/// # Errors
/// As [`keep`].
pub fn forget_peak(device: &CudaDevice) -> Result<()> {
    set(device, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
}

/// The bytes that may still be taken: what nobody has of the card, and what the pool keeps for later.
///
/// # Errors
/// As [`keep`].
pub fn free(device: &CudaDevice) -> Result<u64> {
    let (free, _) = device.cuda_stream().context().mem_get_info().w()?;
    let reserved = get(device, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    Ok(free as u64 + reserved.saturating_sub(used(device)?))
}

fn pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    // SAFETY: the context's own device.
    unsafe { result::device::get_default_mem_pool(stream.context().cu_device()) }.w()
}

fn get(device: &CudaDevice, attribute: Attribute) -> Result<u64> {
    let mut value = 0u64;
    // SAFETY: these attributes are of 64 bits.
    unsafe { mem_pool::get_attribute(pool(device)?, attribute, (&raw mut value).cast()) }.w()?;
    Ok(value)
}

fn set(device: &CudaDevice, attribute: Attribute, mut value: u64) -> Result<()> {
    // SAFETY: these attributes are of 64 bits.
    unsafe { mem_pool::set_attribute(pool(device)?, attribute, (&raw mut value).cast()) }.w()
}
