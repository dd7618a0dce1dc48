//! Launches of rotary.cu.

use candle_core::{DType, Result};

use super::Pairs;
use crate::ops::kernel::{Address, Grid, Launch, Structure};

/// Sizes of x (B, S, H, K) and of the tables that it turns by.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub width: usize,
    /// Rows of the tables, of all samples that have their own.
    pub table_rows: usize,
    /// Pairs of a row of the tables.
    pub table_pairs: usize,
}

/// How tokens turn: see [`super::Turn`].
#[derive(Debug, Clone, Copy)]
pub struct Direction {
    pub pairs: Pairs,
    pub first: usize,
    /// -1 on the way back.
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
    halves: i32,
    rows: i32,
    sign: f32,
}

// SAFETY: the same fields in the same order as in rotary.cu.
unsafe impl Structure for Turn {}

/// y = x, turned by cos and sin.
///
/// # Errors
/// Another type than f32 and bf16.
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
        halves: i32::from(direction.pairs == Pairs::Halves),
        rows: sizes.table_rows.max(1) as i32, // tables of no rows turn nothing
        sign: direction.sign,
    };
    let count = sizes.batch * sizes.tokens * sizes.heads * sizes.width / 2;
    let arguments = vec![
        x.into(),
        cos.into(),
        sin.into(),
        y.into(),
        (count as i64).into(),
        turn.into(),
    ];
    Launch::of_type("rotary", dtype, Grid::over(count), arguments)
}
