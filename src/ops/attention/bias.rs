//! A mask as cuDNN takes it, and which queries it leaves without any key.
//!
//! cuDNN subtracts the largest score of a query from all of them, which for minus infinity gives no number. So finite numbers
//! stand for it, too low for anything to be left of them beside another key. A query that has no other key would see all
//! keys alike: its row is put right afterwards.
//!
//! Shapes: B samples, H heads, S queries, L keys.

use candle_core::{D, DType, Result, Tensor};

/// What finite numbers of a mask are kept within.
const LIMIT: f32 = 1e30;
/// What minus infinity becomes: so far below the limit that nothing is left of it beside that either.
const HIDDEN: f32 = -1e38;

/// A mask made ready.
#[derive(Debug, Clone)]
pub struct Bias {
    /// What is added to scores, (B or 1, H or 1, S, L) in bf16.
    pub added: Tensor,
    /// 1 for queries that see a key and 0 for those that see none, (B or 1, H or 1, S or 1) in f32.
    pub seeing: Tensor,
}

impl Bias {
    /// From a mask (B or 1, H or 1, S or 1, L) in f32, written out for so many queries.
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
