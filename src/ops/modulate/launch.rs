//! Launches of modulate.cu.

use candle_core::{DType, Result};

use crate::ops::kernel::{Address, Grid, Launch, MOST_BLOCKS, Structure, aligned};

/// Sizes of x (B, F, H, W, C), and frames, rows and columns of the tables.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Sizes of x: B, F, H, W, C.
    pub x: [usize; 5],
    /// Frames, rows and columns of the tables.
    pub table: [usize; 3],
}

/// Addresses of the inputs.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// Input.
    pub x: Address,
    /// Scale.
    pub scale: Address,
    /// Shift.
    pub shift: Address,
}

/// `Clip` of modulate.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Clip {
    frames: i32,
    height: i32,
    width: i32,
    channels: i32,
    table_frames: i32,
    table_height: i32,
    table_width: i32,
}

// SAFETY: the same fields in the same order as in modulate.cu.
unsafe impl Structure for Clip {}

/// Launch computing y = silu(x r scale + shift), where r is 1 without an eps.
///
/// # Errors
/// Fails for types other than f32 and bf16.
pub fn forward(sizes: Sizes, read: Read, rms_eps: Option<f64>, y: Address, dtype: DType) -> Result<Launch> {
    const WARPS: usize = 8; // of a block
    let [batch, frames, height, width, channels] = sizes.x;
    let [table_frames, table_height, table_width] = sizes.table.map(|size| size as i32);
    let clip = Clip {
        frames: frames as i32,
        height: height as i32,
        width: width as i32,
        channels: channels as i32,
        table_frames,
        table_height,
        table_width,
    };
    let pixels = batch * frames * height * width;
    let grid = Grid {
        blocks: [pixels.div_ceil(WARPS).clamp(1, MOST_BLOCKS), 1, 1],
        threads: 32 * WARPS,
        shared: 0,
    };
    let arguments = vec![
        read.x.into(),
        read.scale.into(),
        read.shift.into(),
        y.into(),
        (pixels as i64).into(),
        clip.into(),
        (rms_eps.unwrap_or(0.0) as f32).into(),
        rms_eps.is_some().into(),
        aligned(channels, dtype, &[read.x, y]).into(),
    ];
    Launch::of_type("modulated_silu", dtype, grid, arguments)
}
