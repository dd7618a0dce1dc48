//! Launches of rotary.cu.

use candle_core::{DType, Result};

use super::PairLayout;
use crate::ops::kernel::{Address, Grid, Launch, Structure};

/// Sizes of x (B, S, H, K) and of its rotation tables.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Batch size.
    pub batch: usize,
    /// Tokens per sample.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Features per head.
    pub width: usize,
    /// Rows of the tables, over all samples with their own.
    pub table_rows: usize,
    /// Pairs in a row of the tables.
    pub table_pairs: usize,
}

/// Rotation of tokens: see [`super::Rotation`].
#[derive(Debug, Clone, Copy)]
pub struct Direction {
    /// Features that make a pair.
    pub pairs: PairLayout,
    /// Leading tokens that are not rotated.
    pub first: usize,
    /// -1 in the backward pass.
    pub sign: f32,
}

/// `Turn` of rotary.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Turn {
    tokens: i32,
    first: i32,
    size: i32,
    pairs: i32,
    apart: i32,
    rows: i32,
    sign: f32,
}

// SAFETY: the same fields in the same order as in rotary.cu.
unsafe impl Structure for Turn {}

/// Launch computing y = x, rotated by cos and sin.
///
/// # Errors
/// Fails for types other than f32 and bf16.
pub fn rotary(
    sizes: Sizes,
    direction: Direction,
    x: Address,
    [cos, sin]: [Address; 2],
    y: Address,
    dtype: DType,
) -> Result<Launch> {
    let turn = Turn {
        tokens: sizes.tokens as i32,
        first: direction.first as i32,
        size: (sizes.heads * sizes.width) as i32,
        pairs: sizes.table_pairs as i32,
        apart: direction.pairs.distance(sizes.width).unwrap_or(1).max(1) as i32,
        rows: sizes.table_rows.max(1) as i32, // tables without rows rotate nothing
        sign: direction.sign,
    };
    let mut count = sizes.batch * sizes.tokens * sizes.heads * sizes.width / 2;
    let pack = 16 / dtype.size_in_bytes();
    let is_wide = turn.suits(pack) && count / pack <= MOST_PACKS && aligned(&[x, y, cos, sin]);
    let kernel = if is_wide { "rotary_wide" } else { "rotary" };
    count /= if is_wide { pack } else { 1 };
    let arguments = vec![
        x.into(),
        cos.into(),
        sin.into(),
        y.into(),
        (count as i64).into(),
        turn.into(),
    ];
    Launch::of_type(kernel, dtype, Grid::over(count), arguments)
}

/// Packs of pairs that the kernel counts in 32 bits, with room for a last turn of its loop.
const MOST_PACKS: usize = 1 << 31;

impl Turn {
    /// True if so many neighbouring pairs lie in two packs.
    fn suits(&self, pack: usize) -> bool {
        let (pairs, apart) = (self.pairs as usize, self.apart as usize);
        pairs.is_multiple_of(pack) && (apart == 1 || apart.is_multiple_of(pack))
    }
}

fn aligned(addresses: &[Address]) -> bool {
    addresses.iter().all(|address| address % 16 == 0)
}
