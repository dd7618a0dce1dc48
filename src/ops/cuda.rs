//! Launches our kernels, and allocates the memory they read and write.
//!
//! The kernels are small `.cu` files next to their op; `build.rs` compiles them to PTX, which the driver compiles for
//! the card at first use. Everything runs on the device's one stream: a kernel sees the writes of the kernels launched
//! before it, and freed memory is reused only after they have run. So an address may be handed to a kernel while its
//! tensor exists, and the tensor may be dropped before the kernel has finished.

pub mod matmul;
pub mod memory;
pub mod pinned_tensors;
pub mod plain;
pub mod rows;
pub mod slot;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};
use cudarc::driver::{CudaSlice, DevicePtr, LaunchConfig, PushKernelArg, sys};

use super::kernel::{Address, Argument, Launch};
use super::profile;

/// Kernels of one `.cu` file.
pub struct Kernels {
    /// Name of the module.
    pub name: &'static str,
    /// Text of the PTX.
    pub ptx: &'static str,
}

/// Kernels of a `.cu` file, by its name.
macro_rules! kernels {
    ($name:literal) => {
        $crate::ops::cuda::Kernels {
            name: concat!("vtrain_", $name),
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        }
    };
}
pub(crate) use kernels;

/// Shared memory that a block may use without opting in to more.
const ASKING: usize = 48 << 10;

impl Kernels {
    /// Queues a kernel of this file.
    ///
    /// # Errors
    /// Fails if the driver refuses it.
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
                // SAFETY: a structure has a first byte. The driver knows its size from the kernel.
                Argument::Structure(_) => builder.arg(unsafe { &*argument.pointer().cast::<u8>() }),
            };
        }
        let [x, y, z] = grid.blocks.map(|blocks| blocks as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (grid.threads as u32, 1, 1),
            shared_mem_bytes: grid.shared as u32,
        };
        // SAFETY: the functions that make launches name a kernel with arguments in the order and types of its `.cu`
        // file (`tests/kernels.rs` runs all of them), with addresses of memory of the sizes it accesses, on one stream.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

/// Returns the address of a contiguous tensor's numbers.
///
/// # Errors
/// Fails for non-contiguous tensors and for types other than f32, bf16, f64 and u8.
pub fn address(storage: &CudaStorage, layout: &Layout) -> Result<Address> {
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("a kernel needs a contiguous tensor, got {layout:?}");
    };
    Ok(first(storage)? + (start * storage.dtype().size_in_bytes()) as u64)
}

/// Returns the address of a storage's first number.
pub fn first(storage: &CudaStorage) -> Result<Address> {
    fn of<T>(slice: &CudaSlice<T>) -> Address {
        slice.device_ptr(slice.stream()).0
    }
    match &storage.slice {
        CudaStorageSlice::F32(slice) => Ok(of(slice)),
        CudaStorageSlice::BF16(slice) => Ok(of(slice)),
        CudaStorageSlice::F64(slice) => Ok(of(slice)),
        CudaStorageSlice::U8(slice) => Ok(of(slice)),
        _ => bail!("kernels support f32 and bf16, not {:?}", storage.dtype()),
    }
}

/// Returns the address of a contiguous tensor's numbers on a GPU, valid as long as the tensor.
///
/// # Errors
/// Same as [`address`]; also for a tensor on another device.
pub fn address_of(tensor: &Tensor) -> Result<Address> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => address(storage, layout),
        _ => bail!("a kernel was given a tensor on another device"),
    }
}

/// Allocates `count` numbers for a kernel to write; their contents are undefined.
pub fn fresh(device: &CudaDevice, count: usize, dtype: DType) -> Result<CudaStorage> {
    // SAFETY: every caller launches a kernel that writes all of it before it is read.
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

/// Same as [`fresh`], as a tensor outside of the gradient graph.
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
