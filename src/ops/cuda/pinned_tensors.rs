//! Tensors of a device that wait in pinned main memory, copied there and back on a stream of their own.
//!
//! Neither copy keeps the host or the device's own stream waiting: a tensor that leaves is held until the next one does, and one
//! that returns is copied while the device computes what comes before it. The pinned memory is used again and again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Result, Shape, Storage, Tensor, bail};
use cudarc::driver::{CudaEvent, CudaStream};

use super::slot::{Copies, Pinned};
use super::{address_of, first, fresh};

/// Pinned main memory for tensors of one device, kept between uses.
pub struct PinnedTensors {
    device: CudaDevice,
    copies: Copies,
    unused: Mutex<Vec<Pinned>>,
    /// Tensors that are being copied to main memory, with the ends of their copies.
    leaving: Mutex<Vec<(Tensor, CudaEvent)>>,
}

/// A tensor in pinned main memory.
pub struct PinnedTensor {
    pool: Arc<PinnedTensors>,
    /// None once it has been given back.
    host: Option<Pinned>,
    shape: Shape,
    dtype: DType,
    returning: Option<Returning>,
}

/// Memory of the device that a tensor is being copied to.
struct Returning {
    storage: Option<CudaStorage>,
    copied: CudaEvent,
    computes: Arc<CudaStream>,
}

impl PinnedTensors {
    /// Memory for tensors of this device.
    ///
    /// # Errors
    /// Fails if the driver refuses a stream.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        Ok(Self {
            device: device.clone(),
            copies: Copies::new(device)?,
            unused: Mutex::default(),
            leaving: Mutex::default(),
        })
    }

    /// Queues a copy of a contiguous tensor to main memory; None if that has no `room` for it.
    ///
    /// # Errors
    /// Fails if the driver refuses the memory or the copy.
    pub fn park(self: &Arc<Self>, tensor: &Tensor, room: fn() -> Option<u64>) -> Result<Option<PinnedTensor>> {
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        let Some(mut host) = self.host(bytes, room)? else {
            return Ok(None);
        };
        let copied = self.copies.leave(address_of(tensor)?, bytes, &mut host)?;
        self.settle()?;
        lock(&self.leaving).push((tensor.clone(), copied));
        Ok(Some(PinnedTensor {
            pool: self.clone(),
            host: Some(host),
            shape: tensor.shape().clone(),
            dtype: tensor.dtype(),
            returning: None,
        }))
    }

    /// Frees the tensors that have left, once their copies are done: what uses their memory next waits for that on the device.
    fn settle(&self) -> Result<()> {
        for (tensor, copied) in lock(&self.leaving).drain(..) {
            self.copies.computes().wait(&copied).w()?;
            drop(tensor);
        }
        Ok(())
    }

    /// Returns unused memory of so many bytes or a little more, else new memory.
    fn host(&self, bytes: usize, room: fn() -> Option<u64>) -> Result<Option<Pinned>> {
        let mut unused = lock(&self.unused);
        let fits = |pinned: &Pinned| (bytes..=2 * bytes).contains(&pinned.size());
        let fitting = (0..unused.len()).filter(|index| fits(&unused[*index]));
        if let Some(smallest) = fitting.min_by_key(|index| unused[*index].size()) {
            return Ok(Some(unused.swap_remove(smallest)));
        }
        // In the place of one of another length, so that lengths that come and go do not add up.
        unused.pop();
        match room().is_none_or(|room| room >= bytes as u64) {
            true => self.copies.pinned(bytes).map(Some),
            false => Ok(None),
        }
    }
}

impl Drop for PinnedTensors {
    fn drop(&mut self) {
        if let Err(error) = self.settle() {
            log::debug!("offloaded activations are freed on a device that failed: {error}");
        }
    }
}

impl PinnedTensor {
    /// Queues its copy to new memory of the device, behind all that the device has been told to do so far.
    ///
    /// # Errors
    /// Fails if the device has no room, or the driver refuses the copy.
    pub fn begin(&mut self) -> Result<()> {
        let (None, Some(host)) = (&self.returning, &self.host) else {
            return Ok(());
        };
        self.pool.settle()?;
        let storage = fresh(&self.pool.device, self.shape.elem_count(), self.dtype)?;
        let bytes = self.shape.elem_count() * self.dtype.size_in_bytes();
        let copied = self.pool.copies.enter(host, first(&storage)?, bytes)?;
        self.returning = Some(Returning {
            storage: Some(storage),
            copied,
            computes: self.pool.copies.computes().clone(),
        });
        Ok(())
    }

    /// Returns it on the device, a new leaf that is a variable if it is to learn; what is computed from then on waits for its copy.
    ///
    /// # Errors
    /// Same as [`PinnedTensor::begin`].
    pub fn end(mut self, learns: bool) -> Result<Tensor> {
        self.begin()?;
        let storage = self.returning.take().map(Returning::end).transpose()?.flatten();
        let Some(storage) = storage else {
            bail!("a tensor in pinned memory is taken twice");
        };
        let storage = Storage::Cuda(storage);
        Ok(Tensor::from_storage(
            storage,
            self.shape.clone(),
            BackpropOp::none(),
            learns,
        ))
    }
}

impl Drop for PinnedTensor {
    fn drop(&mut self) {
        lock(&self.pool.unused).extend(self.host.take());
    }
}

impl Returning {
    /// Makes the device wait for the copy.
    fn end(mut self) -> Result<Option<CudaStorage>> {
        self.computes.wait(&self.copied).w()?;
        Ok(self.storage.take())
    }
}

impl Drop for Returning {
    /// The memory is freed on the device's stream, to which the copy may be unknown yet.
    fn drop(&mut self) {
        if self.storage.is_some()
            && let Err(error) = self.computes.wait(&self.copied)
        {
            log::debug!("an offloaded activation is freed on a device that failed: {error}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
