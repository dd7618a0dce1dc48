//! Launching kernels of ours, and the memory that they read and write.
//!
//! The kernels are small `.cu` files beside their op; `build.rs` makes PTX of them, which the driver compiles for the card
//! that is there at first use. Everything runs on the device's one stream: what is launched after another kernel sees what
//! that has written, and memory that is let go of is free once the kernels before have run. So an address may be handed to
//! a kernel while its tensor is still there, and nothing need be kept until the kernel is through.

pub mod matmul;
pub mod memory;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};
use cudarc::driver::{CudaSlice, DevicePtr, LaunchConfig, PushKernelArg, sys};

use super::kernel::{Address, Argument, Launch};
use super::profile;

/// The kernels of one `.cu` file.
pub struct Kernels {
    pub name: &'static str,
    pub ptx: &'static str,
}

/// The kernels of a `.cu` file, by its name.
macro_rules! kernels {
    ($name:literal) => {
        $crate::ops::cuda::Kernels {
            name: concat!("vtrain_", $name),
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        }
    };
}
pub(crate) use kernels;

/// More than a block may use of shared memory without asking.
const ASKING: usize = 48 << 10;

impl Kernels {
    /// Queues a kernel of this file.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn launch(&self, device: &CudaDevice, launch: &Launch) -> Result<()> {
        let Launch {
            kernel,
            grid,
            arguments,
        } = launch;
        let function = device.get_or_load_custom_func(kernel, self.name, self.ptx)?;
        if grid.shared > ASKING {
            let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, grid.shared as i32).w()?;
        }
        let _span = profile::kernel(device, || kernel.to_string());
        let mut builder = function.builder();
        for argument in arguments {
            match argument {
                Argument::Address(address) => builder.arg(address),
                Argument::I32(number) => builder.arg(number),
                Argument::I64(number) => builder.arg(number),
                Argument::F32(number) => builder.arg(number),
                // SAFETY: a structure has a first byte. The driver knows from the kernel how many follow it.
                Argument::Structure(_) => builder.arg(unsafe { &*argument.pointer().cast::<u8>() }),
            };
        }
        let [x, y, z] = grid.blocks.map(|blocks| blocks as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (grid.threads as u32, 1, 1),
            shared_mem_bytes: grid.shared as u32,
        };
        // SAFETY: the functions that make launches name a kernel with arguments in the order and types of its `.cu` file
        // (`tests/kernels.rs` runs all of them), addresses of memory of the sizes that it goes through, on one stream.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// Where a contiguous tensor's numbers lie.
///
/// # Errors
/// Gaps between the numbers; another type than f32, bf16 and f64.
pub fn address(storage: &CudaStorage, layout: &Layout) -> Result<Address> {
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("a kernel was given a tensor with gaps, {layout:?}");
    };
    Ok(first(storage)? + (start * storage.dtype().size_in_bytes()) as u64)
}

/// Where a storage begins.
pub fn first(storage: &CudaStorage) -> Result<Address> {
    fn of<T>(slice: &CudaSlice<T>) -> Address {
        slice.device_ptr(slice.stream()).0
    }
    match &storage.slice {
        CudaStorageSlice::F32(slice) => Ok(of(slice)),
        CudaStorageSlice::BF16(slice) => Ok(of(slice)),
        CudaStorageSlice::F64(slice) => Ok(of(slice)),
        _ => bail!("kernels know f32 and bf16, not {:?}", storage.dtype()),
    }
}

/// Where the numbers of a contiguous tensor on a GPU lie. They are there as long as the tensor is.
///
/// # Errors
/// As [`address`]; a tensor on another device.
pub fn address_of(tensor: &Tensor) -> Result<Address> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => address(storage, layout),
        _ => bail!("a kernel was given a tensor on another device"),
    }
}

/// Memory for `count` numbers, which a kernel is to write: they are whatever was there.
pub fn fresh(device: &CudaDevice, count: usize, dtype: DType) -> Result<CudaStorage> {
    // SAFETY: whoever asks for this launches a kernel that writes all of it before anybody reads.
    let slice = unsafe {
        match dtype {
            DType::F32 => CudaStorageSlice::F32(device.alloc(count)?),
            DType::BF16 => CudaStorageSlice::BF16(device.alloc(count)?),
            DType::F64 => CudaStorageSlice::F64(device.alloc(count)?),
            other => bail!("kernels write f32 and bf16, not {other:?}"),
        }
    };
    Ok(CudaStorage {
        slice,
        device: device.clone(),
    })
}

/// The same as a tensor, of which no gradient is known.
pub fn fresh_tensor(device: &CudaDevice, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    let shape = shape.into();
    let storage = fresh(device, shape.elem_count(), dtype)?;
    Ok(Tensor::from_storage(
        Storage::Cuda(storage),
        shape,
        BackpropOp::none(),
        false,
    ))
}
