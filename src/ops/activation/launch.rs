//! Launches of activation.cu.

use candle_core::{DType, Result};

use super::Activation;
use crate::ops::kernel::{Address, Grid, Launch, aligned};

impl Activation {
    /// Launch computing out = f(x) for `count` numbers; given the gradient of f(x), out is the gradient of x.
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn launch(self, x: Address, grad: Option<Address>, out: Address, count: usize, dtype: DType) -> Result<Launch> {
        let pack = 16 / dtype.size_in_bytes();
        let grad = grad.unwrap_or(0);
        let aligned = aligned(pack, dtype, &[x, grad, out]);
        let grid = Grid::over(count.div_ceil(if aligned { pack } else { 1 }));
        let arguments = vec![
            x.into(),
            grad.into(),
            out.into(),
            (count as i64).into(),
            (self as i32).into(),
            aligned.into(),
        ];
        Launch::of_type("activation", dtype, grid, arguments)
    }
}
