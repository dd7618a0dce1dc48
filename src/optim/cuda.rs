//! Optimiser kernels over all adapters on a GPU: a step in one launch, the sums of squares in another.
//!
//! The table of tensor addresses is uploaded with each launch, because gradients have new addresses every time.

use candle_core::{DType, Result, Tensor, Var, bail};
use cudarc::driver::{CudaSlice, DevicePtr};

use super::dynamic_map::DynamicMap;
use super::launch::{Table, Update};
use super::moments::Moments;
use crate::ops::cuda::{self, Kernels, kernels};
use crate::ops::kernel::{Address, Launch};

const KERNELS: Kernels = kernels!("update");

/// One variable with its gradient and moments; variable and gradient are f32 of the same size.
pub struct Moved<'a> {
    /// The variable.
    pub var: &'a Var,
    /// Its gradient.
    pub gradient: &'a Tensor,
    /// Its moments.
    pub moments: &'a Moments,
}

/// Updates variables and their moments in place; tensors that share their memory change as well.
pub fn step(all: &[Moved], update: Update) -> Result<()> {
    let (mut dense, mut blockwise) = (Vec::new(), Vec::new());
    for Moved { var, gradient, moments } in all {
        let var = var.as_tensor();
        match moments {
            Moments::Dense { exp_avg, exp_avg_sq } => dense.push([var, *gradient, exp_avg, exp_avg_sq]),
            Moments::Blockwise {
                state1,
                absmax1,
                state2,
                absmax2,
            } => blockwise.push([var, *gradient, state1, absmax1, state2, absmax2]),
        }
    }
    if !dense.is_empty() {
        Uploaded::new(&dense, |_, tensor| tensor.dtype() == DType::F32)?.launch(|table, at| table.adamw(at, update))?;
    }
    if !blockwise.is_empty() {
        let kinds = [DType::F32, DType::F32, DType::U8, DType::F32, DType::U8, DType::F32];
        let uploaded = Uploaded::new(&blockwise, |kind, tensor| tensor.dtype() == kinds[kind])?;
        let maps = [DynamicMap::signed(), DynamicMap::unsigned()].map(|map| *map.values());
        let maps = uploaded.device.clone_htod(maps.as_flattened())?;
        let values = maps.device_ptr(maps.stream()).0;
        uploaded.launch(|table, at| table.adamw8bit(at, update, values))?;
    }
    Ok(())
}

/// Returns the sum of the squares of all elements, in f64 and in a fixed order.
pub fn square_sum(gradients: &[Tensor]) -> Result<f64> {
    let gradients = gradients
        .iter()
        .map(|gradient| gradient.to_dtype(DType::F32)?.contiguous());
    let gradients = gradients.collect::<Result<Vec<Tensor>>>()?;
    let rows: Vec<[&Tensor; 1]> = gradients.iter().map(|gradient| [gradient]).collect();
    let uploaded = Uploaded::new(&rows, |_, tensor| tensor.dtype() == DType::F32)?;
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
    /// Table with a row for each entry, of N tensors of the types that `fits` accepts for their places; the first of a row
    /// gives its size. At least one row.
    fn new<const N: usize>(rows: &[[&Tensor; N]], fits: impl Fn(usize, &Tensor) -> bool) -> Result<Self> {
        let Some([first, ..]) = rows.first().map(|row| &row[..]) else {
            bail!("no tensors to go over");
        };
        let device = first.device().as_cuda_device()?.clone();
        let mut placed = Vec::with_capacity(rows.len());
        for row in rows {
            let length = row[0].elem_count();
            let mut addresses = [0; N];
            for (kind, (tensor, address)) in row.iter().zip(&mut addresses).enumerate() {
                if !tensor.device().is_cuda() || !tensor.is_contiguous() || !fits(kind, tensor) {
                    bail!("a variable and what moves it must be on one GPU, in the types of the kernel");
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
