//! Launches of decode.cu.

use candle_core::{DType, Result};

use crate::ops::kernel::{Address, Argument, Grid, Launch};

/// Bytes that a thread writes at once.
const PACK: usize = 16;

/// A matrix in few bits, as a kernel of decode.cu reads it.
#[derive(Debug)]
pub struct KernelForm {
    /// Name of the kernel, without the type that it decodes to.
    pub kernel: String,
    /// Bytes of each part, in the order of the kernel's arguments; None for one that this matrix lacks.
    pub parts: Vec<Option<Vec<u8>>>,
    /// Arguments behind the parts.
    pub sizes: Vec<Size>,
    /// Numbers in a row that share all scales.
    pub run: usize,
}

/// A number that a kernel takes.
#[derive(Debug, Clone, Copy)]
pub enum Size {
    /// 32-bit integer.
    I32(i32),
    /// 64-bit integer.
    I64(i64),
    /// Floating-point number.
    F32(f32),
}

impl From<Size> for Argument {
    fn from(size: Size) -> Self {
        match size {
            Size::I32(number) => number.into(),
            Size::I64(number) => number.into(),
            Size::F32(number) => number.into(),
        }
    }
}

impl KernelForm {
    /// Launch decoding `count` numbers from number `first` of the matrix on to `y`; `parts` are the addresses of its
    /// parts, 0 for one that it lacks.
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn launch(&self, parts: &[Address], y: Address, [first, count]: [usize; 2], dtype: DType) -> Result<Launch> {
        let pack = PACK / dtype.size_in_bytes();
        let whole = [first, count, self.run].iter().all(|size| size.is_multiple_of(pack));
        let aligned = whole && y.is_multiple_of(PACK as u64);
        let mut arguments: Vec<Argument> = vec![y.into(), (first as i64).into(), (count as i64).into(), aligned.into()];
        arguments.extend(parts.iter().map(|part| Argument::from(*part)));
        arguments.extend(self.sizes.iter().map(|size| Argument::from(*size)));
        let grid = Grid::over(count.div_ceil(if aligned { pack } else { 1 }));
        Launch::of_type(&self.kernel, dtype, grid, arguments)
    }
}

/// Bytes of numbers in f32.
pub(super) fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
