//! Launches of swiglu.cu.

use candle_core::{DType, Result};

use crate::ops::kernel::{Address, Grid, Launch, aligned};

/// Launch computing the gated product of x (rows, 2 width) -> out (rows, width); given the gradient of that, out is the
/// gradient of x.
///
/// # Errors
/// Fails for types other than f32 and bf16.
pub fn swiglu(
    x: Address,
    grad: Option<Address>,
    out: Address,
    [rows, width]: [usize; 2],
    dtype: DType,
) -> Result<Launch> {
    let grad = grad.unwrap_or(0);
    let (aligned, count) = (aligned(width, dtype, &[x, grad, out]), rows * width);
    let pack = if aligned { 16 / dtype.size_in_bytes() } else { 1 };
    let arguments = vec![
        x.into(),
        grad.into(),
        out.into(),
        (count as i64).into(),
        (width as i32).into(),
        aligned.into(),
    ];
    Launch::of_type("swiglu", dtype, Grid::over(count / pack), arguments)
}
