//! Matrices in f32 or bf16 in a slot on a GPU, copied out of it where a product needs them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail};
use cudarc::driver::result::memcpy_dtod_async;
use cudarc::driver::{CudaSlice, DevicePtr};

use super::slot::DeviceSlot;
use crate::ops::stored::{DeviceForm, StoredMatrix, Weight};

/// A matrix (out, in) without its numbers.
#[derive(Debug, Clone)]
pub struct PlainForm {
    dtype: DType,
    shape: (usize, usize),
    device: Device,
}

impl PlainForm {
    /// Matrix of this type and shape, on a GPU.
    pub fn new(dtype: DType, shape: (usize, usize), device: &Device) -> Self {
        let device = device.clone();
        Self { dtype, shape, device }
    }
}

impl DeviceForm for PlainForm {
    fn at(&self, slot: &Arc<DeviceSlot>, places: &[Range<usize>]) -> Result<Weight> {
        let [place] = places else {
            bail!("a dense matrix has one part");
        };
        Ok(Weight::Stored(Arc::new(InSlot {
            form: self.clone(),
            slot: slot.clone(),
            place: place.start,
        })))
    }
}

/// A matrix (out, in) in a slot.
struct InSlot {
    form: PlainForm,
    slot: Arc<DeviceSlot>,
    /// Its first byte.
    place: usize,
}

impl StoredMatrix for InSlot {
    fn shape(&self) -> (usize, usize) {
        self.form.shape
    }

    fn bytes(&self) -> usize {
        self.form.shape.0 * self.form.shape.1 * self.form.dtype.size_in_bytes()
    }

    fn device(&self) -> &Device {
        &self.form.device
    }

    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        let (out_features, features) = self.form.shape;
        if range.start > range.end || range.end > out_features {
            bail!("rows {range:?} of a matrix of {out_features}");
        }
        let row = features * self.form.dtype.size_in_bytes();
        let device = self.form.device.as_cuda_device()?;
        let from = self.slot.address(self.place + range.start * row);
        let shape = (range.len(), features);
        copied(device, shape.into(), self.form.dtype, from)?.to_dtype(dtype)
    }
}

impl fmt::Debug for InSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} on a GPU", self.form.dtype, self.form.shape)
    }
}

/// Copies the numbers at an address, which are in a slot, to a tensor.
fn copied(device: &CudaDevice, shape: Shape, dtype: DType, from: u64) -> Result<Tensor> {
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    let count = shape.elem_count();
    fn copy<T>(slice: &CudaSlice<T>, from: u64) -> Result<()> {
        let (stream, bytes) = (slice.stream(), slice.num_bytes());
        let to = slice.device_ptr(stream).0;
        // SAFETY: the slot has the matrix at that address, and is freed, or filled again, behind this copy on the same stream.
        match bytes {
            0 => Ok(()),
            _ => unsafe { memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }.w(),
        }
    }
    // SAFETY: all of it is written by the copy.
    let slice = unsafe {
        match dtype {
            DType::F32 => CudaStorageSlice::F32(device.alloc(count)?),
            DType::BF16 => CudaStorageSlice::BF16(device.alloc(count)?),
            DType::F16 => CudaStorageSlice::F16(device.alloc(count)?),
            other => bail!("a streamed matrix is in f32, bf16 or f16, not {other:?}"),
        }
    };
    match &slice {
        CudaStorageSlice::F32(slice) => copy(slice, from)?,
        CudaStorageSlice::BF16(slice) => copy(slice, from)?,
        CudaStorageSlice::F16(slice) => copy(slice, from)?,
        _ => bail!("a streamed matrix is in f32, bf16 or f16, not {dtype:?}"),
    }
    let storage = CudaStorage {
        slice,
        device: device.clone(),
    };
    Ok(Tensor::from_storage(
        Storage::Cuda(storage),
        shape,
        BackpropOp::none(),
        false,
    ))
}
