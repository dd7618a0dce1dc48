//! Matrices in few bits in the memory of a GPU, decoded there.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::launch::KernelForm;
use super::{Decode, Stored, ensure_rows};
use crate::ops::bytes::Bytes;
use crate::ops::cuda::slot::DeviceSlot;
use crate::ops::cuda::{self, Kernels, kernels};
use crate::ops::kernel::Address;
use crate::ops::stored::{DeviceForm, StoredMatrix, Weight};

const KERNELS: Kernels = kernels!("decode");

/// A matrix (out, in).
pub(super) struct OnGpu {
    about: Arc<About>,
    parts: Vec<Part>,
}

/// A matrix without its parts.
struct About {
    name: String,
    bytes: usize,
    shape: (usize, usize),
    device: Device,
    /// The kernel's, whose parts have been taken out.
    form: KernelForm,
}

/// Part of a matrix on the GPU.
enum Part {
    Absent,
    Own(Tensor),
    /// At this place of a slot.
    InSlot(Arc<DeviceSlot>, usize),
}

impl About {
    /// Returns a matrix's facts, and its parts.
    fn new<F: Decode>(stored: &Stored<F>, device: &Device) -> (Self, Vec<Option<Vec<u8>>>) {
        let mut form = stored.format.kernel_form();
        let parts = std::mem::take(&mut form.parts);
        let about = Self {
            name: stored.format.name(),
            bytes: stored.format.bytes(),
            shape: stored.shape,
            device: device.clone(),
            form,
        };
        (about, parts)
    }
}

impl OnGpu {
    /// Copies the parts of a matrix to its device.
    pub(super) fn new<F: Decode>(stored: &Stored<F>) -> Result<Self> {
        let (about, parts) = About::new(stored, &stored.device);
        let copied = parts.into_iter().map(|part| match part {
            Some(bytes) => Tensor::from_slice(&bytes, bytes.len(), &stored.device).map(Part::Own),
            None => Ok(Part::Absent),
        });
        Ok(Self {
            parts: copied.collect::<Result<_>>()?,
            about: Arc::new(about),
        })
    }
}

/// A matrix whose parts lie in a slot while its block runs.
pub(super) struct SlotForm {
    about: Arc<About>,
    /// True for each part of the kernel's that this matrix has.
    has: Vec<bool>,
}

impl SlotForm {
    /// Returns the form of a matrix on a device, and the parts that it has.
    pub(super) fn new<F: Decode>(stored: &Stored<F>, device: &Device) -> (Self, Vec<Bytes>) {
        let (about, parts) = About::new(stored, device);
        let form = Self {
            about: Arc::new(about),
            has: parts.iter().map(Option::is_some).collect(),
        };
        (form, parts.into_iter().flatten().map(Bytes::from).collect())
    }
}

impl DeviceForm for SlotForm {
    fn at(&self, slot: &Arc<DeviceSlot>, places: &[Range<usize>]) -> Result<Weight> {
        let needed = self.has.iter().filter(|has| **has).count();
        if needed != places.len() {
            bail!("{} parts for the {needed} of {}", places.len(), self.about.name);
        }
        let mut places = places.iter();
        let part = |has: &bool| match has.then(|| places.next()).flatten() {
            Some(place) => Part::InSlot(slot.clone(), place.start),
            None => Part::Absent,
        };
        Ok(Weight::Stored(Arc::new(OnGpu {
            about: self.about.clone(),
            parts: self.has.iter().map(part).collect(),
        })))
    }
}

impl StoredMatrix for OnGpu {
    fn shape(&self) -> (usize, usize) {
        self.about.shape
    }

    fn bytes(&self) -> usize {
        self.about.bytes
    }

    fn device(&self) -> &Device {
        &self.about.device
    }

    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        let About {
            shape, device, form, ..
        } = &*self.about;
        let (out_features, features) = *shape;
        ensure_rows(&range, out_features)?;
        let decoded = match dtype {
            DType::F32 | DType::BF16 => dtype,
            _ => DType::F32,
        };
        let shape = (range.len(), features);
        let [first, count] = [range.start * features, range.len() * features];
        if count == 0 {
            return Tensor::zeros(shape, dtype, device);
        }
        let device = device.as_cuda_device()?;
        let rows = cuda::fresh_tensor(device, shape, decoded)?;
        let address = |part: &Part| match part {
            Part::Absent => Ok(0),
            Part::Own(part) => cuda::address_of(part),
            Part::InSlot(slot, place) => Ok(slot.address(*place)),
        };
        let parts: Vec<Address> = self.parts.iter().map(address).collect::<Result<_>>()?;
        let launch = form.launch(&parts, cuda::address_of(&rows)?, [first, count], decoded)?;
        KERNELS.launch(device, &launch)?;
        rows.to_dtype(dtype)
    }
}

impl fmt::Debug for OnGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} on a GPU", self.about.name, self.about.shape)
    }
}
