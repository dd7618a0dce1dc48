//! Copies between pinned main memory and the device, on a stream of its own, and slots of the device that blocks of weights are
//! copied to.

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::{CudaDevice, Result};
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DevicePtr, HostSlice, PinnedHostSlice, result};

use crate::ops::bytes::LiveBytes;
use crate::ops::kernel::Address;

/// Stream of copies to a device, beside the one that computes.
pub struct Copies {
    computes: Arc<CudaStream>,
    copies: Arc<CudaStream>,
}

/// Pinned main memory.
pub struct Pinned(PinnedHostSlice<u8>);

/// Room for a block on the device, filled again and again.
pub struct DeviceSlot {
    bytes: CudaSlice<u8>,
    /// End of the last copy to it.
    copied: Option<CudaEvent>,
    computes: Arc<CudaStream>,
    live: Arc<LiveBytes>,
}

impl Copies {
    /// Stream beside that of a device.
    ///
    /// # Errors
    /// Fails if the driver refuses one.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        let computes = device.cuda_stream();
        let copies = computes.context().new_stream().w()?;
        Ok(Self { computes, copies })
    }

    /// Allocates pinned main memory.
    ///
    /// # Errors
    /// Fails if the system pins no more.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned> {
        // SAFETY: all of it is written before a copy reads it.
        let pinned = unsafe { self.computes.context().alloc_pinned(bytes.max(1)) }.w()?;
        Ok(Pinned(pinned))
    }

    /// Allocates memory of the device, counted in `live` while it is there.
    ///
    /// # Errors
    /// Fails if the device has no room.
    pub fn slot(&self, bytes: usize, live: &Arc<LiveBytes>) -> Result<DeviceSlot> {
        // SAFETY: kernels read a part of it only behind the copy that writes it.
        let memory = unsafe { self.computes.alloc(bytes.max(1)) }.w()?;
        live.add(memory.len());
        Ok(DeviceSlot {
            bytes: memory,
            copied: None,
            computes: self.computes.clone(),
            live: live.clone(),
        })
    }

    /// Queues a copy to the beginning of a slot, behind all that has been queued on the device's stream.
    ///
    /// # Errors
    /// Fails if the driver refuses it.
    pub fn copy(&self, from: &Pinned, to: &mut DeviceSlot) -> Result<()> {
        self.copies.join(&self.computes).w()?;
        let count = from.0.len().min(to.bytes.len());
        let mut to_bytes = to.bytes.slice_mut(..count);
        // The pinned memory has the event of this copy, for which who fills or frees it waits.
        match from.0.len() <= count {
            true => self.copies.memcpy_htod(&from.0, &mut to_bytes).w()?,
            false => candle_core::bail!("a block of {} bytes does not fit its slot of {count}", from.0.len()),
        }
        to.copied = Some(self.copies.record_event(None).w()?);
        Ok(())
    }

    /// Queues a copy of so many bytes from an address of the device, behind all that has been queued on its stream; returns its
    /// end, until which the bytes are to stay as they are.
    ///
    /// # Errors
    /// Fails if they do not fit, or if the driver refuses the copy.
    pub fn leave(&self, from: Address, bytes: usize, to: &mut Pinned) -> Result<CudaEvent> {
        self.copies.join(&self.computes).w()?;
        // SAFETY: what is done with the pinned memory later waits for the end of this copy.
        let (pinned, recorded) = unsafe { to.0.stream_synced_mut_slice(&self.copies) };
        let Some(pinned) = pinned.get_mut(..bytes) else {
            candle_core::bail!("{bytes} bytes do not fit the pinned memory");
        };
        // SAFETY: who calls holds the bytes at the address until the copy has ended.
        unsafe { result::memcpy_dtoh_async(pinned, from, self.copies.cu_stream()) }.w()?;
        drop(recorded);
        self.copies.record_event(None).w()
    }

    /// Queues a copy of so many bytes to an address of the device, behind all that has been queued on its stream; returns its end,
    /// for which who uses or frees them is to wait.
    ///
    /// # Errors
    /// Same as [`Copies::leave`].
    pub fn enter(&self, from: &Pinned, to: Address, bytes: usize) -> Result<CudaEvent> {
        self.copies.join(&self.computes).w()?;
        // SAFETY: what is done with the pinned memory later waits for the end of this copy.
        let (pinned, recorded) = unsafe { from.0.stream_synced_slice(&self.copies) };
        let Some(pinned) = pinned.get(..bytes) else {
            candle_core::bail!("the pinned memory has not {bytes} bytes");
        };
        // SAFETY: who calls holds the memory at the address until the copy has ended.
        unsafe { result::memcpy_htod_async(to, pinned, self.copies.cu_stream()) }.w()?;
        drop(recorded);
        self.copies.record_event(None).w()
    }

    /// Returns the stream that computes.
    pub fn computes(&self) -> &Arc<CudaStream> {
        &self.computes
    }
}

impl Pinned {
    /// Returns the number of its bytes.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// Returns all bytes, to be filled, once copies from them are done.
    ///
    /// # Errors
    /// Fails if a copy did.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        self.0.as_mut_slice().w()
    }
}

impl DeviceSlot {
    /// Makes what the device is told from now on wait for the last copy.
    ///
    /// # Errors
    /// Fails if the driver refuses it.
    pub fn wait(&self) -> Result<()> {
        match &self.copied {
            Some(copied) => self.computes.wait(copied).w(),
            None => Ok(()),
        }
    }

    /// Returns the address of a byte.
    pub fn address(&self, offset: usize) -> Address {
        self.bytes.device_ptr(&self.computes).0 + offset as u64
    }
}

impl Drop for DeviceSlot {
    /// The memory is freed on the device's stream, to which the copy may be unknown yet.
    fn drop(&mut self) {
        self.live.remove(self.bytes.len());
        let waited = self.wait();
        if let Err(error) = waited {
            log::debug!("a slot of weights is freed on a device that failed: {error}");
        }
    }
}
