//! A tensor in half of its bits: f32 as f16, and bf16 and f16 as bytes, of the share that each number is of the largest of the
//! [`BLOCK`] numbers it is among. With those that is 17 and 8.5 bits.

use candle_core::{D, DType, Result, Shape, Tensor};

/// Numbers with a largest one.
const BLOCK: usize = 32;

/// Byte of 0.
const ZERO: f64 = 128.0;

/// Difference from that of the largest number's byte.
const MOST: f64 = 127.0;

/// The tensor.
#[derive(Debug, Clone)]
pub(super) struct Halved {
    /// (blocks, BLOCK)
    levels: Tensor,
    /// Value of a level, (blocks, 1)
    scale: Tensor,
    dtype: DType,
    shape: Shape,
}

impl Halved {
    /// Rounds a tensor.
    pub(super) fn new(tensor: &Tensor) -> Result<Self> {
        let (dtype, shape) = (tensor.dtype(), tensor.shape().clone());
        let block = match shape.elem_count() {
            count if count.is_multiple_of(BLOCK) => BLOCK,
            count => count,
        };
        let blocks = tensor.to_dtype(DType::F32)?.reshape(((), block))?;
        let largest = blocks.abs()?.max_keepdim(D::Minus1)?; // (blocks, 1)
        let is_narrow = matches!(dtype, DType::BF16 | DType::F16);
        let scale = match is_narrow {
            true => (largest / MOST)?.to_dtype(dtype)?,
            false => largest,
        };
        let divisor = scale.to_dtype(DType::F32)?;
        let divisor = divisor.eq(0f32)?.where_cond(&divisor.ones_like()?, &divisor)?;
        let levels = blocks.broadcast_div(&divisor)?;
        let levels = match is_narrow {
            true => (levels + (ZERO + 0.5))?
                .floor()?
                .clamp(0f32, 255f32)?
                .to_dtype(DType::U8)?,
            false => levels.to_dtype(DType::F16)?,
        };
        Ok(Self {
            levels,
            scale,
            dtype,
            shape,
        })
    }

    /// Returns the numbers in their type again.
    pub(super) fn whole(&self) -> Result<Tensor> {
        let levels = self.levels.to_dtype(DType::F32)?;
        let levels = match self.levels.dtype() {
            DType::U8 => (levels - ZERO)?,
            _ => levels,
        };
        let numbers = levels.broadcast_mul(&self.scale.to_dtype(DType::F32)?)?;
        numbers.to_dtype(self.dtype)?.reshape(&self.shape)
    }
}
