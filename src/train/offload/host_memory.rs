//! Main memory that tensors of a GPU wait in: pinned, as long as enough of the rest stays free, else ordinary. Numbers come back
//! bit for bit.

use candle_core::{Device, Result, Tensor, Var};
#[cfg(feature = "cuda")]
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "cuda")]
use crate::nn::ring::main_memory_room;
#[cfg(feature = "cuda")]
use crate::ops::cuda::pinned_tensors::{PinnedTensor, PinnedTensors};

/// Main memory for tensors, kept from pass to pass. A copy shares it.
#[derive(Clone, Default)]
pub struct HostMemory {
    /// The pinned part, once there was a tensor of a GPU.
    #[cfg(feature = "cuda")]
    pinned: Arc<Mutex<Option<Arc<PinnedTensors>>>>,
}

/// A tensor in main memory.
pub enum HostTensor {
    /// In ordinary memory, or that of the CPU where it was.
    Copied(Tensor),
    /// In pinned memory.
    #[cfg(feature = "cuda")]
    Pinned(Box<PinnedTensor>),
}

impl HostMemory {
    /// Brings a tensor to main memory.
    ///
    /// # Errors
    /// Fails for memory that runs out.
    pub fn park(&self, tensor: &Tensor) -> Result<HostTensor> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = tensor.device() {
            let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
            let pinned = match &*pinned {
                Some(pinned) => pinned.clone(),
                None => pinned.insert(Arc::new(PinnedTensors::new(device)?)).clone(),
            };
            if let Some(parked) = pinned.park(&tensor.detach().contiguous()?, main_memory_room)? {
                return Ok(HostTensor::Pinned(Box::new(parked)));
            }
        }
        tensor.detach().to_device(&Device::Cpu).map(HostTensor::Copied)
    }
}

impl HostTensor {
    /// Begins to bring it back, if that keeps nobody waiting; true if it does.
    ///
    /// # Errors
    /// Fails if the device has no room.
    pub fn begin(&mut self) -> Result<bool> {
        match self {
            Self::Copied(_) => Ok(false),
            #[cfg(feature = "cuda")]
            Self::Pinned(parked) => parked.begin().map(|()| true),
        }
    }

    /// Returns it on its device; as a variable if it is to learn.
    ///
    /// # Errors
    /// Fails if the device has no room.
    pub fn end(self, device: &Device, learns: bool) -> Result<Tensor> {
        match self {
            Self::Copied(tensor) => {
                let tensor = tensor.to_device(device)?;
                match learns {
                    true => Ok(Var::from_tensor(&tensor)?.into_inner()),
                    false => Ok(tensor),
                }
            }
            #[cfg(feature = "cuda")]
            Self::Pinned(parked) => parked.end(learns),
        }
    }
}

impl PartialEq for HostMemory {
    /// Main memory is one.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for HostMemory {}

impl std::fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostMemory")
    }
}

impl std::fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Copied(tensor) => write!(f, "Copied({:?})", tensor.shape()),
            #[cfg(feature = "cuda")]
            Self::Pinned(_) => f.write_str("Pinned"),
        }
    }
}
