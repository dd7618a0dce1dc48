//! Modulation before a convolution of a video autoencoder: `silu(x r scale + shift)`, channels last, with tables that
//! may be coarser than x. r is 1, or 1 / sqrt(mean(x^2) + eps) over the channels of each pixel (an RMS norm).
//!
//! Everything is computed in f32 and rounded once, to the type of x: where the tables subtract a mean that is large
//! compared to the deviation, rounding in between would lose the remainder. For inference only.
//!
//! Shapes: B batch, F frames, H rows, W columns, C channels; f, h, w the table's.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;

use candle_core::{DType, Result, Tensor, bail};

use super::activation::silu;

/// Tables, with an optional RMS norm before them.
#[derive(Debug, Clone, Copy)]
pub struct Modulation<'a> {
    /// Scale (B, f, h, w, C), f32.
    pub scale: &'a Tensor,
    /// Shift (B, f, h, w, C), f32.
    pub shift: &'a Tensor,
    /// Epsilon of the RMS norm, if there is one.
    pub rms_eps: Option<f64>,
}

/// silu(x r scale + shift), (B, F, H, W, C) -> (B, F, H, W, C), with the nearest entry of the tables.
///
/// # Errors
/// Fails for tables of another batch size, channel count or type.
pub fn modulated_silu(x: &Tensor, modulation: Modulation) -> Result<Tensor> {
    let Modulation { scale, shift, .. } = modulation;
    let (batch, _, _, _, channels) = x.dims5()?;
    let table = scale.dims5()?;
    if shift.dims() != scale.dims() || table.0 != batch || table.4 != channels {
        bail!("tables {:?} and {:?} for {:?}", scale.dims(), shift.dims(), x.dims());
    }
    if scale.dtype() != DType::F32 || shift.dtype() != DType::F32 {
        bail!("tables are f32, not {:?} and {:?}", scale.dtype(), shift.dtype());
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && x.elem_count() > 0 && super::device::has_kernels(x) {
        return cuda::forward(x, modulation);
    }
    reference(x, modulation)
}

/// Reference in candle's own operations.
///
/// # Errors
/// Same as [`modulated_silu`].
pub fn reference(x: &Tensor, Modulation { scale, shift, rms_eps }: Modulation) -> Result<Tensor> {
    let (_, frames, height, width, _) = x.dims5()?;
    let mut wide = x.to_dtype(DType::F32)?;
    if let Some(eps) = rms_eps {
        let rms = (wide.sqr()?.mean_keepdim(4)? + eps)?.sqrt()?; // (B, F, H, W, 1)
        wide = wide.broadcast_div(&rms)?;
    }
    let spread = |table: &Tensor| {
        let (_, f, h, w, _) = table.dims5()?;
        if [f, h, w] == [1, 1, 1] {
            return Ok(table.clone());
        }
        let table = select(table, 1, (0..frames).map(|frame| table_frame(frame, frames, f)))?;
        let table = select(&table, 2, (0..height).map(|row| row * h / height))?;
        select(&table, 3, (0..width).map(|column| column * w / width))
    };
    wide = wide.broadcast_mul(&spread(scale)?)?.broadcast_add(&spread(shift)?)?;
    silu(&wide)?.to_dtype(x.dtype())
}

/// Returns the table entry, of `table_frames`, for a frame. With an odd number of frames, the first frame has the
/// table's first entry to itself.
pub fn table_frame(frame: usize, frames: usize, table_frames: usize) -> usize {
    if frames > 1 && !frames.is_multiple_of(2) && table_frames > 1 {
        match frame {
            0 => 0,
            _ => 1 + (frame - 1) * (table_frames - 1) / (frames - 1),
        }
    } else {
        frame * table_frames / frames
    }
}

/// Selects the entries of x along `dim` at these indices.
pub fn select(x: &Tensor, dim: usize, places: impl Iterator<Item = usize>) -> Result<Tensor> {
    let places: Vec<u32> = places.map(|place| place as u32).collect();
    let count = places.len();
    x.contiguous()?
        .index_select(&Tensor::from_vec(places, count, x.device())?, dim)
}
