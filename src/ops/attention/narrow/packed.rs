//! Heads in the lines that blocks read.

use crate::ops::bf16::line::{Line, SIDE};
use crate::ops::bf16::pack::Rows;

/// Operands that a head is of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// Tokens as rows of a left matrix: all features of 32 tokens, then those of the next.
    Left,
    /// Tokens as columns of a right matrix, in the same order.
    Right,
    /// Features as rows of a left matrix: all tokens in 32 features, then in the next.
    LeftOverTokens,
    /// Features as columns of a right matrix, in the same order.
    RightOverTokens,
}

/// Returns the lines of a head.
pub fn packed(rows: &Rows, operand: Operand) -> Vec<Line> {
    let (tokens, features) = (rows.rows().div_ceil(SIDE), rows.cols().div_ceil(SIDE));
    let mut lines = vec![Line::ZERO; tokens * features * SIDE];
    fill(rows, 0, tokens, operand, &mut lines);
    lines
}

/// Writes the lines of `count` blocks of tokens from block `first` on.
pub fn fill(rows: &Rows, first: usize, count: usize, operand: Operand, lines: &mut [Line]) {
    let features = rows.cols().div_ceil(SIDE);
    let (steps, _) = lines.as_chunks_mut::<SIDE>();
    for token in 0..count {
        for feature in 0..features {
            let (row, col) = ((first + token) * SIDE, feature * SIDE);
            let (by_token, by_feature) = (token * features + feature, feature * count + token);
            match operand {
                Operand::Left => rows.pack_left(row, col, &mut steps[by_token]),
                Operand::Right => rows.pack_right_transposed(row, col, &mut steps[by_token]),
                Operand::LeftOverTokens => rows.pack_left_transposed(row, col, &mut steps[by_feature]),
                Operand::RightOverTokens => rows.pack_right(row, col, &mut steps[by_feature]),
            }
        }
    }
}
