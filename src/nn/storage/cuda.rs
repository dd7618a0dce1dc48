//! Matrices in few bits in the memory of a GPU, decoded there.

use std::fmt;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::launch::KernelForm;
use super::{Decode, Stored, ensure_rows};
use crate::ops::cuda::{self, Kernels, kernels};
use crate::ops::kernel::Address;
use crate::ops::stored::StoredMatrix;

const KERNELS: Kernels = kernels!("decode");

/// A matrix (out, in).
pub(super) struct OnGpu {
    name: String,
    bytes: usize,
    shape: (usize, usize),
    device: Device,
    /// The kernel's; its parts have been copied.
    form: KernelForm,
    parts: Vec<Option<Tensor>>,
}

impl OnGpu {
    /// Copies the parts of a matrix to its device.
    pub(super) fn new<F: Decode>(stored: &Stored<F>) -> Result<Self> {
        let mut form = stored.format.kernel_form();
        let parts = std::mem::take(&mut form.parts).into_iter();
        let copied = parts.map(|part| {
            let copied = part.map(|bytes| Tensor::from_slice(&bytes, bytes.len(), &stored.device));
            copied.transpose()
        });
        Ok(Self {
            name: stored.format.name(),
            bytes: stored.format.bytes(),
            shape: stored.shape,
            device: stored.device.clone(),
            parts: copied.collect::<Result<_>>()?,
            form,
        })
    }
}

impl StoredMatrix for OnGpu {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        let (out_features, features) = self.shape;
        ensure_rows(&range, out_features)?;
        let decoded = match dtype {
            DType::F32 | DType::BF16 => dtype,
            _ => DType::F32,
        };
        let shape = (range.len(), features);
        let [first, count] = [range.start * features, range.len() * features];
        if count == 0 {
            return Tensor::zeros(shape, dtype, &self.device);
        }
        let device = self.device.as_cuda_device()?;
        let rows = cuda::fresh_tensor(device, shape, decoded)?;
        let address = |part: &Option<Tensor>| part.as_ref().map_or(Ok(0), cuda::address_of);
        let parts: Vec<Address> = self.parts.iter().map(address).collect::<Result<_>>()?;
        let launch = self
            .form
            .launch(&parts, cuda::address_of(&rows)?, [first, count], decoded)?;
        KERNELS.launch(device, &launch)?;
        rows.to_dtype(dtype)
    }
}

impl fmt::Debug for OnGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} on a GPU", self.name, self.shape)
    }
}
