//! A mask in the form cuDNN takes, and the queries it leaves without any key.
//!
//! cuDNN subtracts a query's largest score from all of its scores, which gives NaN for minus infinity. So finite
//! numbers replace it, low enough to vanish next to any visible key. A fully masked query would see all keys alike: its
//! row is corrected afterwards.
//!
//! Shapes: B samples, H heads, S queries, L keys.

use candle_core::{D, DType, Result, Tensor};

/// Bound within which finite values of a mask are clamped.
const LIMIT: f32 = 1e30;
/// Replacement for minus infinity: far enough below the limit to vanish next to it.
const HIDDEN: f32 = -1e38;

/// A prepared mask.
#[derive(Debug, Clone)]
pub struct Bias {
    /// Values added to scores, (B or 1, H or 1, S, L) in bf16.
    pub added: Tensor,
    /// 1 for queries that see a key and 0 for those that see none, (B or 1, H or 1, S or 1) in f32.
    pub seeing: Tensor,
}

impl Bias {
    /// Prepares a mask (B or 1, H or 1, S or 1, L) in f32, expanded to `queries` queries.
    pub fn new(mask: &Tensor, queries: usize) -> Result<Self> {
        let (samples, heads, _, keys) = mask.dims4()?;
        let hidden = mask.eq(f32::NEG_INFINITY)?;
        let lowest = Tensor::full(HIDDEN, mask.shape(), mask.device())?;
        let finite = hidden.where_cond(&lowest, &mask.clamp(-LIMIT, LIMIT)?)?;
        let added = finite.to_dtype(DType::BF16)?;
        Ok(Self {
            added: added.broadcast_as((samples, heads, queries, keys))?.contiguous()?,
            seeing: mask
                .max(D::Minus1)?
                .ne(f32::NEG_INFINITY)?
                .to_dtype(DType::F32)?
                .contiguous()?,
        })
    }
}
