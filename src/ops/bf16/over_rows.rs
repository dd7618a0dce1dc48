//! Sums over the rows of two matrices, `f a^T b`: the gradients of an adapter.

use super::Isa;
use super::output::{Finish, Output};
use super::pack::Rows;
use super::product::{LeftMatrix, Term};
use super::right::{Packed, Right};
use crate::ops::gemm::blocks_of_rows;

/// Returns `factor a^T b` (columns of a, columns of b): a sum over the rows of both, added block by block as
/// `gemm_over_rows` does. a, which is packed, is the narrower one.
pub fn over_rows(isa: Isa, factor: f32, a: Rows, b: Rows) -> Vec<f32> {
    assert_eq!(a.rows(), b.rows(), "the rows of a product over rows differ");
    let mut sum: Option<Vec<f32>> = None;
    for rows in blocks_of_rows(a.rows()) {
        let [a, b] = [a, b].map(|matrix| matrix.part(rows.start, rows.len()));
        let packed = Packed::left_of_columns(a);
        let mut next = Output::new(a.cols(), b.cols());
        let term = Term {
            left: LeftMatrix::Packed(&packed),
            right: Right::Plain(b),
        };
        let onto = sum.as_deref();
        next.compute(
            isa,
            &[term],
            Finish {
                factor,
                bias: None,
                onto,
            },
        );
        sum = Some(next.into_numbers());
    }
    sum.unwrap_or_default() // there is always a block
}

/// Returns `(factor a^T b)^T` (columns of b, columns of a).
pub fn over_rows_transposed(isa: Isa, factor: f32, a: Rows, b: Rows) -> Vec<f32> {
    transposed(&over_rows(isa, factor, a, b), a.cols(), b.cols())
}

/// Returns the transpose of a small matrix.
fn transposed(numbers: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut transposed = vec![0.0; numbers.len()];
    const TILE: usize = 16;
    for row in (0..rows).step_by(TILE) {
        for col in (0..cols).step_by(TILE) {
            for i in row..(row + TILE).min(rows) {
                for j in col..(col + TILE).min(cols) {
                    transposed[j * rows + i] = numbers[i * cols + j];
                }
            }
        }
    }
    transposed
}
