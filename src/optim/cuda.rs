//! All adapters at once on a GPU: a step in one launch, the sums of squares in another.
//!
//! Tensors are cut into pieces of one size, a block each; a table in the device's memory says where they lie, and travels
//! there with each launch, since gradients lie elsewhere every time.

use candle_core::{DType, Result, Tensor, Var, bail};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};

use crate::ops::cuda::{self, Grid, Kernels, kernels};

const KERNELS: Kernels = kernels!("update");

/// Numbers of a piece: as in update.cu.
const PIECE: usize = 1 << 14;

/// Threads of a block: as in update.cu.
const THREADS: usize = 256;

/// `Update` of update.cu: what all numbers of a step share.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Update {
    pub scale: f32,
    pub decay: f32,
    pub weight1: f32,
    pub beta2: f32,
    pub weight2: f32,
    pub step_size: f32,
    pub correction: f32,
    pub epsilon: f32,
}

// SAFETY: the same fields in the same order as in update.cu.
unsafe impl DeviceRepr for Update {}

/// One variable, and what moves it; all f32 of one size.
pub struct Moved<'a> {
    pub var: &'a Var,
    pub gradient: &'a Tensor,
    pub exp_avg: &'a Tensor,
    pub exp_avg_sq: &'a Tensor,
}

/// Whether tensors lie where and as the kernels want them.
pub fn possible(tensor: &Tensor) -> bool {
    tensor.device().is_cuda() && tensor.dtype() == DType::F32 && tensor.is_contiguous()
}

/// Moves variables and their moments where they lie; whoever shares their memory sees it.
pub fn step(all: &[Moved], update: Update) -> Result<()> {
    let tensors: Vec<[&Tensor; 4]> = all
        .iter()
        .map(|moved| [moved.var.as_tensor(), moved.gradient, moved.exp_avg, moved.exp_avg_sq])
        .collect();
    Table::new(&tensors)?.launch("adamw", |table, count, launch| launch(&[table, count, &update]))
}

/// The sum of the squares of all numbers, in f64 and in a fixed order.
pub fn square_sum(gradients: &[Tensor]) -> Result<f64> {
    let gradients = gradients
        .iter()
        .map(|gradient| gradient.to_dtype(DType::F32)?.contiguous());
    let gradients = gradients.collect::<Result<Vec<Tensor>>>()?;
    let table = Table::new(&gradients.iter().map(|gradient| [gradient]).collect::<Vec<_>>())?;
    let sums = cuda::fresh_tensor(gradients[0].device().as_cuda_device()?, table.pieces, DType::F64)?;
    let to = cuda::address_of(&sums)?;
    table.launch("square_sums", |table, count, launch| launch(&[table, count, &to]))?;
    Ok(sums.to_vec1::<f64>()?.iter().sum())
}

/// Where tensors lie, on the device.
struct Table {
    device: candle_core::CudaDevice,
    numbers: CudaSlice<i64>,
    count: usize,
    pieces: usize,
}

/// Queues a kernel with these arguments.
type Launch<'a> = dyn Fn(&[&dyn cuda::Argument]) -> Result<()> + 'a;

impl Table {
    /// Of as many tensors as there are rows, with N of one size in each; at least one row.
    fn new<const N: usize>(rows: &[[&Tensor; N]]) -> Result<Self> {
        let Some([first, ..]) = rows.first().map(|row| &row[..]) else {
            bail!("no tensors to go over");
        };
        let device = first.device().as_cuda_device()?.clone();
        let (mut firsts, mut lengths, mut places) = (vec![0], Vec::new(), vec![Vec::new(); N]);
        let mut pieces = 0;
        for row in rows {
            let length = row[0].elem_count();
            pieces += length.div_ceil(PIECE);
            firsts.push(pieces as i64);
            lengths.push(length as i64);
            for (tensor, places) in row.iter().zip(&mut places) {
                if tensor.elem_count() != length || !possible(tensor) {
                    bail!("a variable and what moves it must be f32 of one size on one GPU");
                }
                places.push(cuda::address_of(tensor)? as i64);
            }
        }
        let numbers = [firsts, lengths, places.concat()].concat();
        Ok(Self {
            numbers: device.clone_htod(&numbers)?,
            device,
            count: rows.len(),
            pieces,
        })
    }

    /// Lets `call` queue the kernel, given the table's address and the number of tensors, before its own arguments.
    fn launch(
        &self,
        kernel: &str,
        call: impl FnOnce(&dyn cuda::Argument, &dyn cuda::Argument, &Launch) -> Result<()>,
    ) -> Result<()> {
        if self.pieces == 0 {
            return Ok(());
        }
        let grid = Grid {
            blocks: [self.pieces, 1, 1],
            threads: THREADS,
            shared: 0,
        };
        let table = self.numbers.device_ptr(self.numbers.stream()).0;
        let count = self.count as i32;
        call(&table, &count, &|arguments| {
            KERNELS.launch(&self.device, kernel, grid, arguments)
        })
    }
}
