//! Optimiser kernels over all adapters on a GPU: a step in one launch, the sums of squares in another.
//!
//! The table of tensor addresses is uploaded with each launch, because gradients have new addresses every time.

use candle_core::{DType, Result, Tensor, Var, bail};
use cudarc::driver::{CudaSlice, DevicePtr};

use super::launch::{Table, Update};
use crate::ops::cuda::{self, Kernels, kernels};
use crate::ops::kernel::{Address, Launch};

const KERNELS: Kernels = kernels!("update");

/// One variable with its gradient and moments; all f32 of the same size.
pub struct Moved<'a> {
    /// The variable.
    pub var: &'a Var,
    /// Its gradient.
    pub gradient: &'a Tensor,
    /// Running average of the gradient.
    pub exp_avg: &'a Tensor,
    /// Running average of the squared gradient.
    pub exp_avg_sq: &'a Tensor,
}

/// Checks that the kernels can update a tensor.
pub fn possible(tensor: &Tensor) -> bool {
    tensor.device().is_cuda() && tensor.dtype() == DType::F32 && tensor.is_contiguous()
}

/// Updates variables and their moments in place; tensors that share their memory change as well.
pub fn step(all: &[Moved], update: Update) -> Result<()> {
    let tensors: Vec<[&Tensor; 4]> = all
        .iter()
        .map(|moved| [moved.var.as_tensor(), moved.gradient, moved.exp_avg, moved.exp_avg_sq])
        .collect();
    Uploaded::new(&tensors)?.launch(|table, at| table.adamw(at, update))
}

/// Returns the sum of the squares of all elements, in f64 and in a fixed order.
pub fn square_sum(gradients: &[Tensor]) -> Result<f64> {
    let gradients = gradients
        .iter()
        .map(|gradient| gradient.to_dtype(DType::F32)?.contiguous());
    let gradients = gradients.collect::<Result<Vec<Tensor>>>()?;
    let uploaded = Uploaded::new(&gradients.iter().map(|gradient| [gradient]).collect::<Vec<_>>())?;
    let sums = cuda::fresh_tensor(
        gradients[0].device().as_cuda_device()?,
        uploaded.table.pieces,
        DType::F64,
    )?;
    let to = cuda::address_of(&sums)?;
    uploaded.launch(|table, at| table.square_sums(at, to))?;
    Ok(sums.to_vec1::<f64>()?.iter().sum())
}

/// A table of tensors, with its copy on the device.
struct Uploaded {
    device: candle_core::CudaDevice,
    table: Table,
    numbers: CudaSlice<i64>,
}

impl Uploaded {
    /// Table with a row for each entry, of N tensors of the same size; at least one row.
    fn new<const N: usize>(rows: &[[&Tensor; N]]) -> Result<Self> {
        let Some([first, ..]) = rows.first().map(|row| &row[..]) else {
            bail!("no tensors to go over");
        };
        let device = first.device().as_cuda_device()?.clone();
        let mut placed = Vec::with_capacity(rows.len());
        for row in rows {
            let length = row[0].elem_count();
            let mut addresses = [0; N];
            for (tensor, address) in row.iter().zip(&mut addresses) {
                if tensor.elem_count() != length || !possible(tensor) {
                    bail!("a variable and what moves it must be f32 of one size on one GPU");
                }
                *address = cuda::address_of(tensor)?;
            }
            placed.push((length, addresses));
        }
        let table = Table::new(&placed);
        Ok(Self {
            numbers: device.clone_htod(&table.numbers)?,
            device,
            table,
        })
    }

    /// Queues the launch that `make` returns for the table and its address, unless the table has no elements.
    fn launch(&self, make: impl FnOnce(&Table, Address) -> Launch) -> Result<()> {
        if self.table.pieces == 0 {
            return Ok(());
        }
        let at = self.numbers.device_ptr(self.numbers.stream()).0;
        KERNELS.launch(&self.device, &make(&self.table, at))
    }
}
