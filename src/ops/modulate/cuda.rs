//! Modulated SiLU on a GPU.

use candle_core::{Result, Tensor};

use super::Modulation;
use super::launch::{self, Read, Sizes};
use crate::ops::cuda::{self, Kernels, kernels};

const KERNELS: Kernels = kernels!("modulate");

pub fn forward(x: &Tensor, Modulation { scale, shift, rms_eps }: Modulation) -> Result<Tensor> {
    let (x, scale, shift) = (x.contiguous()?, scale.contiguous()?, shift.contiguous()?);
    let (batch, frames, height, width, channels) = x.dims5()?;
    let (_, table_frames, table_height, table_width, _) = scale.dims5()?;
    let device = x.device().as_cuda_device()?;
    let y = cuda::fresh_tensor(device, x.dims(), x.dtype())?;
    let sizes = Sizes {
        x: [batch, frames, height, width, channels],
        table: [table_frames, table_height, table_width],
    };
    let read = Read {
        x: cuda::address_of(&x)?,
        scale: cuda::address_of(&scale)?,
        shift: cuda::address_of(&shift)?,
    };
    KERNELS.launch(
        device,
        &launch::forward(sizes, read, rms_eps, cuda::address_of(&y)?, x.dtype())?,
    )?;
    Ok(y)
}
