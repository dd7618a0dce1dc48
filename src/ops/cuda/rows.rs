//! Copies of rows within a GPU's memory.

use candle_core::cuda_backend::WrapErr;
use candle_core::{CudaDevice, Result};
use cudarc::driver::sys;

use crate::ops::kernel::Address;
use crate::ops::profile;

/// Rows of bytes that are copied to other rows, each a step of bytes after the one before.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// First row.
    pub from: Address,
    /// Bytes from one row to the next.
    pub from_step: usize,
    /// First row of the copy.
    pub to: Address,
    /// Bytes from one row of the copy to the next.
    pub to_step: usize,
    /// Bytes of a row.
    pub bytes: usize,
    /// Number of rows.
    pub rows: usize,
}

impl Rows {
    /// Queues the copy.
    ///
    /// # Errors
    /// Fails if the driver refuses it.
    pub fn copy(&self, device: &CudaDevice) -> Result<()> {
        if self.rows == 0 || self.bytes == 0 {
            return Ok(());
        }
        let _span = profile::kernel(device, || "copy of rows".into());
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let whole = self.rows == 1 || (self.from_step == self.bytes && self.to_step == self.bytes);
        // SAFETY: who calls gives addresses of memory of the device that has these rows.
        let queued = unsafe {
            match whole {
                true => sys::cuMemcpyDtoDAsync_v2(self.to, self.from, self.rows * self.bytes, stream.cu_stream()),
                false => sys::cuMemcpy2DAsync_v2(&self.plan(), stream.cu_stream()),
            }
        };
        queued.result().w()
    }

    fn plan(&self) -> sys::CUDA_MEMCPY2D {
        sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: std::ptr::null(),
            srcDevice: self.from,
            srcArray: std::ptr::null_mut(),
            srcPitch: self.from_step,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: self.to,
            dstArray: std::ptr::null_mut(),
            dstPitch: self.to_step,
            WidthInBytes: self.bytes,
            Height: self.rows,
        }
    }
}
