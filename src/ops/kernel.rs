//! Launches of our kernels, described without a GPU: the kernel's name, its grid and its arguments.
//!
//! Beside each op `launch.rs` makes these; `cuda.rs` (feature `cuda`) queues them on a GPU, and `tests/kernels.rs` runs the
//! same ones on the CPU. So nothing here or there may depend on the feature.

pub mod rows;
pub mod sources;

use std::ffi::c_void;
use std::fmt::Debug;

use candle_core::{DType, Result, bail};

/// An address in the memory that a kernel reads and writes.
pub type Address = u64;

/// A kernel, how it is spread over the card, and what it is given.
#[derive(Debug)]
pub struct Launch {
    /// Its name in the `.cu` file.
    pub kernel: String,
    pub grid: Grid,
    /// In the order and the types of its declaration.
    pub arguments: Vec<Argument>,
}

impl Launch {
    /// A launch of the kernel for numbers of type `dtype`: of `norm_back`, say, `norm_back_bf16`.
    ///
    /// # Errors
    /// Another type than f32 and bf16.
    pub fn of_type(kernel: &str, dtype: DType, grid: Grid, arguments: Vec<Argument>) -> Result<Self> {
        let kernel = match dtype {
            DType::F32 => format!("{kernel}_f32"),
            DType::BF16 => format!("{kernel}_bf16"),
            other => bail!("{kernel}: kernels know f32 and bf16, not {other:?}"),
        };
        Ok(Self {
            kernel,
            grid,
            arguments,
        })
    }
}

/// How a kernel is spread over the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pub blocks: [usize; 3],
    /// Of a block.
    pub threads: usize,
    /// Bytes of shared memory of a block, besides those that the kernel declares.
    pub shared: usize,
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

/// One argument of a kernel: a number, an address, or a structure of both.
#[derive(Debug)]
pub enum Argument {
    Address(Address),
    I32(i32),
    I64(i64),
    F32(f32),
    Structure(Box<dyn Structure>),
}

/// A structure that a kernel takes by value.
///
/// # Safety
/// It is `repr(C)` and has the fields of the structure in the `.cu` file, in their order and types.
pub unsafe trait Structure: Debug + Send + Sync + 'static {}

impl Argument {
    /// Where the argument lies in this process, as launching functions want it.
    pub fn pointer(&self) -> *const c_void {
        match self {
            Self::Address(address) => (&raw const *address).cast(),
            Self::I32(number) => (&raw const *number).cast(),
            Self::I64(number) => (&raw const *number).cast(),
            Self::F32(number) => (&raw const *number).cast(),
            Self::Structure(structure) => (&raw const **structure).cast(),
        }
    }

    /// How many bytes it takes.
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

/// Whether rows of `width` numbers at these addresses all begin at multiples of 16 bytes.
pub fn aligned(width: usize, dtype: DType, addresses: &[Address]) -> bool {
    let row = (width * dtype.size_in_bytes()) as u64;
    addresses.iter().all(|address| address % 16 == 0) && row.is_multiple_of(16)
}
