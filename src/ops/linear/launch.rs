//! Launches of linear.cu.

use candle_core::{DType, Result};

use crate::ops::kernel::{Address, Grid, Launch};

/// Launch computing y += bias for y (rows, columns) and bias (columns).
///
/// # Errors
/// Fails for types other than f32 and bf16.
pub fn bias(y: Address, bias: Address, [rows, columns]: [usize; 2], dtype: DType) -> Result<Launch> {
    let count = rows * columns;
    let arguments = vec![y.into(), bias.into(), (count as i64).into(), (columns as i32).into()];
    Launch::of_type("linear_bias", dtype, Grid::over(count), arguments)
}
