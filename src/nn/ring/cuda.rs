//! Copies to a GPU, on a second stream.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{CudaDevice, Device, Result};

use super::{CopyEngine, lock, main_memory_room};
use crate::ops::bytes::{Bytes, LiveBytes};
use crate::ops::cuda::memory;
use crate::ops::cuda::plain::PlainForm;
use crate::ops::cuda::slot::{Copies, DeviceSlot, Pinned};
use crate::ops::stored::{DeviceForm, StoredMatrix, Weight};

/// Copies to one GPU.
pub struct Gpu {
    device: CudaDevice,
    /// The second stream, from the first use on.
    copies: Mutex<Option<Arc<Copies>>>,
}

impl Gpu {
    /// Copies to this GPU.
    pub fn new(device: &CudaDevice) -> Self {
        Self {
            device: device.clone(),
            copies: Mutex::default(),
        }
    }

    fn copies(&self) -> Result<Arc<Copies>> {
        let mut copies = lock(&self.copies);
        if let Some(copies) = &*copies {
            return Ok(copies.clone());
        }
        let new = Arc::new(Copies::new(&self.device)?);
        *copies = Some(new.clone());
        Ok(new)
    }
}

impl CopyEngine for Gpu {
    type Form = Arc<dyn DeviceForm>;
    type Host = Pinned;
    type Slot = DeviceSlot;

    fn pack(&self, matrix: &dyn StoredMatrix) -> Option<(Self::Form, Vec<Bytes>)> {
        let (device, movable) = (Device::Cuda(self.device.clone()), matrix.movable()?);
        match matrix.plain() {
            None => movable.device_form(&device),
            Some(plain) => {
                let form = PlainForm::new(plain.dtype(), matrix.shape(), &device);
                Some((Arc::new(form), movable.parts()))
            }
        }
    }

    fn unpack(&self, form: &Self::Form, slot: &Arc<DeviceSlot>, places: &[Range<usize>]) -> Result<Weight> {
        form.at(slot, places)
    }

    fn host_room(&self) -> Option<u64> {
        main_memory_room()
    }

    fn room(&self) -> Option<u64> {
        memory::free(&self.device).ok()
    }

    fn host(&self, bytes: usize) -> Result<Pinned> {
        self.copies()?.pinned(bytes)
    }

    fn host_bytes<'a>(&self, host: &'a mut Pinned) -> Result<&'a mut [u8]> {
        host.bytes_mut()
    }

    fn slot(&self, bytes: usize, live: &Arc<LiveBytes>) -> Result<DeviceSlot> {
        self.copies()?.slot(bytes, live)
    }

    fn copy(&self, host: &Pinned, slot: &mut DeviceSlot) -> Result<()> {
        self.copies()?.copy(host, slot)
    }

    fn wait(&self, slot: &DeviceSlot) -> Result<()> {
        slot.wait()
    }
}
