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
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, LaunchArgs, LaunchConfig, PushKernelArg, sys};

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

/// How a kernel is spread over the card.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub blocks: [usize; 3],
    /// Of a block.
    pub threads: usize,
    /// Bytes of shared memory of a block, besides those that the kernel declares.
    pub shared: usize,
}

/// What a kernel is given: a number, an address, or a structure of both.
pub trait Argument {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>);
}

impl<T: DeviceRepr> Argument for T {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        launch.arg(self);
    }
}

/// An address on the device.
pub type Address = sys::CUdeviceptr;

/// More than a block may use of shared memory without asking.
const ASKING: usize = 48 << 10;

impl Kernels {
    /// Queues a kernel. The arguments are those of its declaration, in their order and types.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn launch(&self, device: &CudaDevice, name: &str, grid: Grid, arguments: &[&dyn Argument]) -> Result<()> {
        let function = device.get_or_load_custom_func(name, self.name, self.ptx)?;
        if grid.shared > ASKING {
            let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, grid.shared as i32).w()?;
        }
        let _span = profile::kernel(device, || name.to_string());
        let mut launch = function.builder();
        for argument in arguments {
            argument.push(&mut launch);
        }
        let [x, y, z] = grid.blocks.map(|blocks| blocks as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (grid.threads as u32, 1, 1),
            shared_mem_bytes: grid.shared as u32,
        };
        // SAFETY: every call of this names a kernel with arguments in the order and types of its `.cu` file, addresses of
        // memory of the sizes that it goes through, on one stream.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }
}

impl Grid {
    /// A thread for each of `count` numbers or packs, which may go on to others.
    pub fn over(count: usize) -> Self {
        const THREADS: usize = 256;
        Self {
            blocks: [count.div_ceil(THREADS).clamp(1, 1 << 16), 1, 1],
            threads: THREADS,
            shared: 0,
        }
    }

    /// A block for each row of `width` numbers, which its threads read in packs of 16 bytes where they are `aligned`.
    pub fn rows(rows: usize, width: usize, dtype: DType, aligned: bool) -> Self {
        let pack = if aligned { 16 / dtype.size_in_bytes() } else { 1 };
        Self {
            blocks: [rows, 1, 1],
            threads: width.div_ceil(pack).next_multiple_of(32).clamp(32, 512),
            shared: 0,
        }
    }
}

/// A kernel's name for numbers of this type.
pub fn named(kernel: &str, dtype: DType) -> Result<String> {
    match dtype {
        DType::F32 => Ok(format!("{kernel}_f32")),
        DType::BF16 => Ok(format!("{kernel}_bf16")),
        other => bail!("{kernel}: kernels know f32 and bf16, not {other:?}"),
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

/// Whether rows of `width` numbers at these addresses all begin at multiples of 16 bytes.
pub fn aligned(width: usize, dtype: DType, addresses: &[Address]) -> bool {
    let row = (width * dtype.size_in_bytes()) as u64;
    addresses.iter().all(|address| address % 16 == 0) && row.is_multiple_of(16)
}

/// `Parts` of kernel.cuh: which rows of a sample read which row of a table (B or 1, P, D).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    rows: i32,
    shared: i32,
    count: i32,
    ends: [i32; MOST_PARTS],
}

/// Parts that a kernel knows.
pub const MOST_PARTS: usize = 8;

// SAFETY: the same fields in the same order as in kernel.cuh.
unsafe impl DeviceRepr for Parts {}

impl Parts {
    /// Of parts with so many rows each, for a table of `samples` samples; at most [`MOST_PARTS`].
    pub fn new(parts: &[usize], samples: usize) -> Self {
        let mut ends = [0; MOST_PARTS];
        let mut end = 0;
        for (at, rows) in ends.iter_mut().zip(parts) {
            end += *rows as i32;
            *at = end;
        }
        Self {
            rows: end,
            shared: i32::from(samples == 1),
            count: parts.len() as i32,
            ends,
        }
    }
}

/// Into how many sums the rows of a part are cut, where a kernel adds them up feature by feature.
pub fn slices(rows: usize) -> usize {
    rows.div_ceil(64).clamp(1, 64)
}
