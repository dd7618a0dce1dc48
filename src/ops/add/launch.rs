//! Launches of residual.cu without a gate.

use candle_core::{DType, Result};

use crate::ops::kernel::{Address, Grid, Launch, aligned};

/// Launch computing y = a + b for `count` numbers.
///
/// # Errors
/// Fails for types other than f32 and bf16.
pub fn forward([a, b]: [Address; 2], y: Address, count: usize, dtype: DType) -> Result<Launch> {
    let pack = 16 / dtype.size_in_bytes();
    let aligned = aligned(pack, dtype, &[a, b, y]);
    let arguments = vec![a.into(), b.into(), y.into(), (count as i64).into(), aligned.into()];
    let grid = Grid::over(count.div_ceil(if aligned { pack } else { 1 }));
    Launch::of_type("add", dtype, grid, arguments)
}
