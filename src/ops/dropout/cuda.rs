//! Dropout on a GPU.

use candle_core::{CudaDevice, DType, Result};

use super::Mask;
use crate::ops::cuda::{Kernels, kernels};
use crate::ops::kernel::Address;

const KERNELS: Kernels = kernels!("dropout");

/// Writes m x to `y`, which may be the address of x.
pub fn apply(mask: &Mask, device: &CudaDevice, [x, y]: [Address; 2], count: usize, dtype: DType) -> Result<()> {
    KERNELS.launch(device, &mask.launch(x, y, count, dtype)?)
}
