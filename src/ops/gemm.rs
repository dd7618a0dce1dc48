//! Multi-threaded products of large matrices within ops: `c = beta c + alpha a b`, on candle's own gemm.

use candle_core::Device;
use gemm::Parallelism;

use super::profile::{Level, span};

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
    if m == 0 || n == 0 {
        return;
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
