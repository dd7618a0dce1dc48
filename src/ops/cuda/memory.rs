//! Memory pool of the device: kept between uses, with its peak measured.
//!
//! candle allocates by `cudaMallocAsync` from the device's default pool, which releases all free memory at every
//! synchronisation unless told to keep it.

use candle_core::cuda_backend::WrapErr;
use candle_core::{CudaDevice, Result};
use cudarc::driver::result::mem_pool;
use cudarc::driver::{result, sys};

use sys::CUmemPool_attribute_enum as Attribute;

/// Makes the pool keep its free memory.
///
/// # Errors
/// Fails if the device has no pool, or the driver refuses.
pub fn keep(device: &CudaDevice) -> Result<()> {
    set(device, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
}

/// Returns the peak bytes in use since the start, or since [`forget_peak`].
///
/// # Errors
/// Same as [`keep`].
pub fn peak(device: &CudaDevice) -> Result<u64> {
    get(device, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
}

/// Returns the bytes in use now.
///
/// # Errors
/// Same as [`keep`].
pub fn used(device: &CudaDevice) -> Result<u64> {
    get(device, Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
}

/// Resets the peak.
///
/// # Errors
/// Same as [`keep`].
pub fn forget_peak(device: &CudaDevice) -> Result<()> {
    set(device, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
}

/// Returns the bytes that can still be allocated: the card's free memory, and the pool's unused memory.
///
/// # Errors
/// Same as [`keep`].
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
    // SAFETY: these attributes are 64 bits wide.
    unsafe { mem_pool::get_attribute(pool(device)?, attribute, (&raw mut value).cast()) }.w()?;
    Ok(value)
}

fn set(device: &CudaDevice, attribute: Attribute, mut value: u64) -> Result<()> {
    // SAFETY: these attributes are 64 bits wide.
    unsafe { mem_pool::set_attribute(pool(device)?, attribute, (&raw mut value).cast()) }.w()
}
