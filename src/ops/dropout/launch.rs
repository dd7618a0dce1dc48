//! Launches of dropout.cu.

use candle_core::{DType, Result};

use super::Mask;
use crate::ops::kernel::{Address, Grid, Launch, aligned};

impl Mask {
    /// Launch computing y = m x for `count` numbers, also in place.
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn launch(&self, x: Address, y: Address, count: usize, dtype: DType) -> Result<Launch> {
        let pack = 16 / dtype.size_in_bytes();
        let aligned = aligned(pack, dtype, &[x, y]);
        let arguments = vec![
            x.into(),
            y.into(),
            (count as i64).into(),
            self.start.cast_signed().into(),
            self.below.cast_signed().into(),
            aligned.into(),
        ];
        let grid = Grid::over(count.div_ceil(if aligned { pack } else { 1 }));
        Launch::of_type("dropout", dtype, grid, arguments)
    }
}
