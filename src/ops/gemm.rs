//! Multi-threaded products of large matrices within ops: `c = beta c + alpha a b`, on candle's own gemm.
//!
//! A row of c depends on its row of a and on b alone: cut into [`blocks_of_rows`], a gives the same bits. So do sums over
//! the rows of both matrices ([`gemm_over_rows`]), which are added block by block.

use std::ops::Range;

use candle_core::Device;
use gemm::Parallelism;

use super::profile::{Level, span};
use crate::process::allocations;

/// Rows of a block. Far fewer would make a product decode its weights too often, and of 64 or less gemm sums in another order.
const ROWS: usize = 2048;

/// Returns the blocks of so many rows: of 2048, and the last one with the rest, so that none is shorter if there are as many.
pub fn blocks_of_rows(rows: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator {
    let count = (rows / ROWS).max(1);
    (0..count).map(move |block| {
        let end = if block + 1 == count { rows } else { (block + 1) * ROWS };
        block * ROWS..end
    })
}

/// A matrix in a slice: `rows` x `cols`, the number at (i, j) at `i row_stride + j col_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    pub numbers: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Matrix of contiguous rows.
    pub fn new(numbers: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(numbers, rows, cols, cols)
    }

    /// Matrix whose rows start `row_stride` numbers apart.
    pub fn strided(numbers: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let matrix = Self {
            numbers,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        };
        matrix.check();
        matrix
    }

    /// Returns the transpose, a view of the same numbers.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Returns some rows.
    fn block(self, rows: Range<usize>) -> Self {
        Self {
            numbers: &self.numbers[rows.start * self.row_stride..],
            rows: rows.len(),
            ..self
        }
    }

    /// Checks that every element is inside of the slice, because `gemm` reads through raw pointers.
    fn check(&self) {
        let last = self.rows.saturating_sub(1) * self.row_stride + self.cols.saturating_sub(1) * self.col_stride;
        let empty = self.rows == 0 || self.cols == 0;
        assert!(
            empty || last < self.numbers.len(),
            "a matrix reaches beyond its numbers"
        );
    }
}

/// Computes `c = beta c + alpha a b` for c (rows of a, cols of b), whose rows start `row_stride` numbers apart. With
/// `beta` 0 the previous c is ignored. Sums run along the inner axis in an order independent of the threads.
pub fn gemm(c: &mut [f32], row_stride: usize, beta: f32, alpha: f32, a: Matrix, b: Matrix) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "the inner sides of a product differ");
    if m == 0 || n == 0 || allocations::is_recording() {
        return; // a record is of memory alone, and the buffers of a product depend on its size in steps
    }
    assert!(
        (m - 1) * row_stride + n <= c.len(),
        "a product reaches beyond its output"
    );
    if k == 0 {
        for c in c.chunks_mut(row_stride).take(m) {
            c[..n]
                .iter_mut()
                .for_each(|c| *c = if beta == 0.0 { 0.0 } else { beta * *c });
        }
        return;
    }
    let _span = span(Level::Kernel, &Device::Cpu, || format!("product {m}x{k}x{n}"));
    // SAFETY: the assertions above and in `Matrix::check` keep all reads and writes inside of the slices; c is
    // borrowed mutably, so it overlaps neither a nor b.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            row_stride as isize,
            beta != 0.0,
            a.numbers.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.numbers.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            Parallelism::Rayon(rayon::current_num_threads()),
        );
    }
}

/// Returns `alpha a^T b` (columns of a, columns of b): a sum over the rows of both, added block by block.
pub fn gemm_over_rows(alpha: f32, a: Matrix, b: Matrix) -> Vec<f32> {
    assert_eq!(a.rows, b.rows, "the rows of a product over rows differ");
    let product = |rows: Range<usize>| {
        let mut c = vec![0.0; a.cols * b.cols];
        gemm(&mut c, b.cols, 0.0, alpha, a.block(rows.clone()).t(), b.block(rows));
        c
    };
    let products = blocks_of_rows(a.rows).map(product);
    let sum = products.reduce(|mut sum, product| {
        sum.iter_mut().zip(product).for_each(|(sum, number)| *sum += number);
        sum
    });
    sum.unwrap_or_default() // there is always a block
}
