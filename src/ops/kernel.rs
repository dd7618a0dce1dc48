//! Kernel launches, described without a GPU: the kernel's name, its grid and its arguments.
//!
//! Each op's `launch.rs` makes these; `cuda.rs` (feature `cuda`) queues them on a GPU, and `tests/kernels.rs` runs the
//! same ones on the CPU. So nothing here or there may depend on the feature.

pub mod rows;
pub mod sources;

use std::ffi::c_void;
use std::fmt::Debug;

use candle_core::{DType, Result, bail};

/// An address in the memory that a kernel reads and writes.
pub type Address = u64;

/// Upper limit for the blocks of a launch; threads loop over the rest.
pub const MOST_BLOCKS: usize = 1 << 16;

/// Threads of a warp, and the limit of a row's block.
pub const WARP: usize = 32;
const MOST_THREADS: usize = 512;

/// A kernel, its grid and its arguments.
#[derive(Debug)]
pub struct Launch {
    /// Its name in the `.cu` file.
    pub kernel: String,
    /// Blocks and threads.
    pub grid: Grid,
    /// Arguments in the order and types of the declaration.
    pub arguments: Vec<Argument>,
}

impl Launch {
    /// Launch of the kernel for numbers of type `dtype`, such as `norm_back_bf16` of `norm_back`.
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn of_type(kernel: &str, dtype: DType, grid: Grid, arguments: Vec<Argument>) -> Result<Self> {
        let kernel = match dtype {
            DType::F32 => format!("{kernel}_f32"),
            DType::BF16 => format!("{kernel}_bf16"),
            other => bail!("{kernel}: kernels support f32 and bf16, not {other:?}"),
        };
        Ok(Self {
            kernel,
            grid,
            arguments,
        })
    }
}

/// Blocks and threads of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y and z.
    pub blocks: [usize; 3],
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of shared memory of a block, in addition to what the kernel declares.
    pub shared: usize,
}

impl Grid {
    /// Grid of a thread for each of `count` numbers or packs; threads may loop over more.
    pub fn over(count: usize) -> Self {
        const THREADS: usize = 256;
        Self {
            blocks: [count.div_ceil(THREADS).clamp(1, MOST_BLOCKS), 1, 1],
            threads: THREADS,
            shared: 0,
        }
    }

    /// Grid of a block for each row of `width` numbers, read in packs of 16 bytes if `aligned`.
    pub fn rows(rows: usize, width: usize, dtype: DType, aligned: bool) -> Self {
        let pack = if aligned { 16 / dtype.size_in_bytes() } else { 1 };
        Self {
            blocks: [rows, 1, 1],
            threads: width.div_ceil(pack).next_multiple_of(WARP).clamp(WARP, MOST_THREADS),
            shared: 0,
        }
    }
}

/// One argument of a kernel: a number, an address, or a structure of both.
#[derive(Debug)]
pub enum Argument {
    /// Address in the device's memory.
    Address(Address),
    /// 32-bit integer.
    I32(i32),
    /// 64-bit integer.
    I64(i64),
    /// 32-bit floating-point number.
    F32(f32),
    /// Structure passed by value.
    Structure(Box<dyn Structure>),
}

/// A structure that a kernel takes by value.
///
/// # Safety
/// It is `repr(C)` and has the fields of the structure in the `.cu` file, in their order and types.
pub unsafe trait Structure: Debug + Send + Sync + 'static {}

impl Argument {
    /// Returns the argument's address in this process, as launch functions take it.
    pub fn pointer(&self) -> *const c_void {
        match self {
            Self::Address(address) => (&raw const *address).cast(),
            Self::I32(number) => (&raw const *number).cast(),
            Self::I64(number) => (&raw const *number).cast(),
            Self::F32(number) => (&raw const *number).cast(),
            Self::Structure(structure) => (&raw const **structure).cast(),
        }
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Address(_) | Self::I64(_) => 8,
            Self::I32(_) | Self::F32(_) => 4,
            Self::Structure(structure) => size_of_val(&**structure),
        }
    }
}

impl From<Address> for Argument {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

impl From<i32> for Argument {
    fn from(number: i32) -> Self {
        Self::I32(number)
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self::I64(number)
    }
}

impl From<f32> for Argument {
    fn from(number: f32) -> Self {
        Self::F32(number)
    }
}

/// C++ kernels take flags as `int`.
impl From<bool> for Argument {
    fn from(flag: bool) -> Self {
        Self::I32(i32::from(flag))
    }
}

impl<S: Structure> From<S> for Argument {
    fn from(structure: S) -> Self {
        Self::Structure(Box::new(structure))
    }
}

/// Checks that rows of `width` numbers at these addresses all begin at multiples of 16 bytes.
pub fn aligned(width: usize, dtype: DType, addresses: &[Address]) -> bool {
    let row = (width * dtype.size_in_bytes()) as u64;
    addresses.iter().all(|address| address % 16 == 0) && row.is_multiple_of(16)
}
