//! Matrices that products write, in bf16 or f32: `y = f sums + bias + onto`.

use candle_core::Device;
use half::bf16;

use super::Isa;
use super::line::{SIDE, Sums, nearest};
use super::product::{Term, product};
use crate::ops::map::Zeros;
use crate::ops::profile::{Level, span};
use crate::ops::simd_math::wide;
use crate::process::allocations;

/// Change of sums before they are written.
#[derive(Debug, Clone, Copy)]
pub struct Finish<'a> {
    /// Factor of the sums.
    pub factor: f32,
    /// Addend of each column that is computed.
    pub bias: Option<&'a [f32]>,
    /// Matrix that is added, as large as the output.
    pub onto: Option<&'a [f32]>,
}

impl Finish<'_> {
    /// Nothing.
    pub const NONE: Self = Self {
        factor: 1.0,
        bias: None,
        onto: None,
    };
}

/// A matrix (rows, cols) whose columns products write one range after the other.
#[derive(Debug)]
pub struct Output<T> {
    numbers: Vec<T>,
    rows: usize,
    cols: usize,
    /// Columns that have been written.
    written: usize,
}

/// Numbers of outputs.
pub trait Number: Zeros {
    /// Writes a block of `f sums + bias`: its first rows and columns, to rows `stride` apart.
    ///
    /// # Safety
    /// They can be written there.
    unsafe fn write(sums: &Sums, factor: f32, bias: &[f32; SIDE], place: Place<Self>);
}

/// Rows of a matrix that may be written: a corner of a block.
#[derive(Debug, Clone, Copy)]
pub struct Place<T> {
    start: *mut T,
    stride: usize,
    rows: usize,
    cols: usize,
}

// SAFETY: threads write different blocks of it.
unsafe impl<T: Send> Send for Place<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Place<T> {}

impl<T: Number> Output<T> {
    /// Matrix without numbers.
    pub fn new(rows: usize, cols: usize) -> Self {
        let count = rows * cols;
        let numbers = match allocations::is_recording() {
            true => T::zeros(count),
            false => Vec::with_capacity(count),
        };
        Self {
            numbers,
            rows,
            cols,
            written: 0,
        }
    }

    /// Computes the next columns: as many as the terms have.
    pub fn compute(&mut self, isa: Isa, terms: &[Term], finish: Finish) {
        let Some(term) = terms.first() else {
            return;
        };
        let (first, count) = (self.written, term.right.cols());
        assert!(first + count <= self.cols, "a product beyond its output");
        assert!(
            finish.onto.is_none_or(|onto| onto.len() == self.rows * self.cols),
            "an addend of another size"
        );
        let depth: usize = terms.iter().map(|term| term.right.depth()).sum();
        let _span = span(Level::Kernel, &Device::Cpu, || {
            format!("product {}x{depth}x{count} in bf16", self.rows)
        });
        let all = self.place();
        product(isa, terms, |row, col, sums| {
            let mut bias = [0.0; SIDE];
            if let Some(from) = finish.bias {
                let from = &from[col..(col + SIDE).min(count)];
                bias[..from.len()].copy_from_slice(from);
            }
            let cols = SIDE.min(count - col);
            // SAFETY: `compute` has checked the sides; every block is its own, and of this output alone.
            unsafe {
                let place = all.block(row, first + col, cols);
                match finish.onto {
                    None => T::write(sums, finish.factor, &bias, place),
                    Some(onto) => {
                        let onto = &onto[row * self.cols + first + col..];
                        let sums = added(sums, finish.factor, &bias, onto, self.cols, cols);
                        T::write(&sums, 1.0, &[0.0; SIDE], place);
                    }
                }
            }
        });
        self.written += count;
    }

    fn place(&mut self) -> Place<T> {
        Place {
            start: self.numbers.as_mut_ptr(),
            stride: self.cols,
            rows: self.rows,
            cols: self.cols,
        }
    }

    /// Returns the numbers, row by row.
    pub fn into_numbers(mut self) -> Vec<T> {
        if self.numbers.is_empty() {
            assert!(
                self.rows == 0 || self.written == self.cols,
                "columns that no product wrote"
            );
            // SAFETY: there is room for all, and products wrote all columns of all rows.
            unsafe { self.numbers.set_len(self.rows * self.cols) };
        }
        self.numbers
    }
}

impl<T> Place<T> {
    /// Returns a block's rows from `row` on, `cols` columns from `col` on.
    ///
    /// # Safety
    /// They lie in the matrix.
    unsafe fn block(self, row: usize, col: usize, cols: usize) -> Self {
        Self {
            // SAFETY: the caller's.
            start: unsafe { self.start.add(row * self.stride + col) },
            stride: self.stride,
            rows: SIDE.min(self.rows - row),
            cols,
        }
    }

    /// Writes the first numbers of a row.
    ///
    /// # Safety
    /// It is one of the rows.
    #[inline(always)]
    unsafe fn put(&self, row: usize, numbers: [T; SIDE]) {
        // SAFETY: the caller's; whoever made it has room for its rows and columns.
        unsafe {
            let to = self.start.add(row * self.stride);
            match self.cols {
                SIDE => to.cast::<[T; SIDE]>().write_unaligned(numbers),
                cols => to.copy_from_nonoverlapping(numbers.as_ptr(), cols),
            }
        }
    }
}

impl Number for bf16 {
    unsafe fn write(sums: &Sums, factor: f32, bias: &[f32; SIDE], place: Place<Self>) {
        write_narrow(sums, factor, bias, place);
    }
}

impl Number for f32 {
    unsafe fn write(sums: &Sums, factor: f32, bias: &[f32; SIDE], place: Place<Self>) {
        write_wide(sums, factor, bias, place);
    }
}

wide! {
    /// Returns `f sums + bias`, rounded, with the rows of a matrix, `stride` apart, added to it.
    fn added(sums: &Sums, factor: f32, bias: &[f32; SIDE], onto: &[f32], stride: usize, cols: usize) -> Sums {
        let mut all = *sums;
        for (sums, onto) in all.0.iter_mut().zip(onto.chunks(stride)) {
            let cols = cols.min(onto.len());
            for ((sum, bias), onto) in sums.iter_mut().zip(bias).zip(&onto[..cols]) {
                *sum = sum.mul_add(factor, *bias) + onto;
            }
        }
        all
    }
}

wide! {
    fn write_narrow(sums: &Sums, factor: f32, bias: &[f32; SIDE], place: Place<bf16>) {
        for (i, sums) in sums.0.iter().enumerate().take(place.rows) {
            let mut row = [bf16::ZERO; SIDE];
            for j in 0..SIDE {
                row[j] = nearest(sums[j].mul_add(factor, bias[j]));
            }
            // SAFETY: the caller of `write` guarantees it.
            unsafe { place.put(i, row) };
        }
    }
}

wide! {
    fn write_wide(sums: &Sums, factor: f32, bias: &[f32; SIDE], place: Place<f32>) {
        for (i, sums) in sums.0.iter().enumerate().take(place.rows) {
            let mut row = [0.0; SIDE];
            for j in 0..SIDE {
                row[j] = sums[j].mul_add(factor, bias[j]);
            }
            // SAFETY: the caller of `write` guarantees it.
            unsafe { place.put(i, row) };
        }
    }
}
