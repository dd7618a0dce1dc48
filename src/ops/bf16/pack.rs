//! Packing of squares, 32 x 32 numbers of a matrix in rows, into the lines of a step. What is missing at an edge is zero.

use half::bf16;

use super::line::{Line, SIDE};

/// Rows of numbers, `stride` apart.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    numbers: &'a [bf16],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows without gaps.
    pub fn new(numbers: &'a [bf16], rows: usize, cols: usize) -> Self {
        Self::strided(numbers, rows, cols, cols)
    }

    /// Rows that begin `stride` numbers apart.
    pub fn strided(numbers: &'a [bf16], rows: usize, cols: usize, stride: usize) -> Self {
        let end = rows.saturating_sub(1) * stride + cols;
        let empty = rows == 0 || cols == 0;
        assert!(empty || end <= numbers.len(), "rows reach beyond their numbers");
        assert!(rows < 2 || cols <= stride, "rows overlap");
        Self {
            numbers,
            rows,
            cols,
            stride,
        }
    }

    /// Rows without numbers, for a record of memory: sums with them are 0.
    pub fn outline(rows: usize, cols: usize) -> Self {
        Self {
            numbers: &[],
            rows,
            cols,
            stride: cols,
        }
    }

    /// True for rows without numbers.
    pub(super) fn is_outline(&self) -> bool {
        self.numbers.is_empty() && self.rows * self.cols > 0
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the distance between rows.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Returns a row.
    pub fn row(&self, row: usize) -> &'a [bf16] {
        &self.numbers[row * self.stride..][..self.cols]
    }

    /// Returns `count` rows from `first` on.
    pub fn part(&self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "rows beyond the last");
        let numbers = match count * self.cols * self.numbers.len() {
            0 => &[],
            _ => &self.numbers[first * self.stride..],
        };
        Self {
            numbers,
            rows: count,
            ..*self
        }
    }

    /// Returns where a square begins if all of its numbers are there.
    pub(super) fn whole_square(&self, row: usize, col: usize) -> Option<*const bf16> {
        let whole = row + SIDE <= self.rows && col + SIDE <= self.cols;
        whole.then(|| self.numbers[row * self.stride + col..].as_ptr())
    }

    /// Returns a square and the distance between its rows: copied between zeros where numbers are missing.
    fn square(&self, row: usize, col: usize, place: &mut [Line; SIDE]) -> (*const bf16, usize) {
        if let Some(start) = self.whole_square(row, col) {
            return (start, self.stride);
        }
        *place = [Line::ZERO; SIDE];
        let cols = SIDE.min(self.cols.saturating_sub(col));
        for (line, row) in place.iter_mut().zip(row..self.rows) {
            line.0[..cols].copy_from_slice(&self.numbers[row * self.stride + col..][..cols]);
        }
        (place.as_ptr().cast(), SIDE)
    }

    /// Packs a step of a, of which these are the rows.
    pub fn pack_left(&self, row: usize, col: usize, lines: &mut [Line; SIDE]) {
        let mut place = [Line::ZERO; SIDE];
        let (from, stride) = self.square(row, col, &mut place);
        for (i, line) in lines.iter_mut().enumerate() {
            // SAFETY: `square` has 32 rows of 32 numbers.
            line.0 = unsafe { from.add(i * stride).cast::<[bf16; SIDE]>().read_unaligned() };
        }
    }

    /// Packs a step of a, of which these are the columns.
    pub fn pack_left_transposed(&self, row: usize, col: usize, lines: &mut [Line; SIDE]) {
        let mut pairs = [Line::ZERO; SIDE];
        self.pack_right(row, col, &mut pairs);
        // SAFETY: 32 lines of 32 numbers.
        unsafe { transpose(pairs.as_ptr().cast(), SIDE, lines) };
    }

    /// Packs a step of b, of which these are the rows: for dx = dy W.
    pub fn pack_right(&self, row: usize, col: usize, lines: &mut [Line; SIDE]) {
        let mut place = [Line::ZERO; SIDE];
        let (from, stride) = self.square(row, col, &mut place);
        // SAFETY: `square` has 32 rows of 32 numbers.
        unsafe { interleave(from, stride, lines) };
    }

    /// Packs a step of b, of which these are the columns: for y = x W^T.
    pub fn pack_right_transposed(&self, row: usize, col: usize, lines: &mut [Line; SIDE]) {
        let mut place = [Line::ZERO; SIDE];
        let (from, stride) = self.square(row, col, &mut place);
        // SAFETY: `square` has 32 rows of 32 numbers.
        unsafe { transpose(from, stride, lines) };
    }
}

/// Packs 32 rows of 16 pairs into two tiles, each the transpose of 16 rows of pairs.
///
/// # Safety
/// There are 32 rows of 32 numbers, `stride` apart.
unsafe fn transpose(from: *const bf16, stride: usize, lines: &mut [Line; SIDE]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bw") {
        // SAFETY: the caller's; the instructions are there.
        return unsafe { x86::transpose(from, stride, lines) };
    }
    for (i, line) in lines.iter_mut().enumerate() {
        for (j, number) in line.0.iter_mut().enumerate() {
            let (row, col) = (i / 16 * 16 + j / 2, i % 16 * 2 + j % 2);
            // SAFETY: the caller's.
            *number = unsafe { *from.add(row * stride + col) };
        }
    }
}

/// Packs 32 rows into two tiles: rows 2 i and 2 i + 1 number by number.
///
/// # Safety
/// As `transpose`.
unsafe fn interleave(from: *const bf16, stride: usize, lines: &mut [Line; SIDE]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bw") {
        // SAFETY: the caller's; the instructions are there.
        return unsafe { x86::interleave(from, stride, lines) };
    }
    for (i, line) in lines.iter_mut().enumerate() {
        for (j, number) in line.0.iter_mut().enumerate() {
            let (row, col) = (i % 16 * 2 + j % 2, i / 16 * 16 + j / 2);
            // SAFETY: the caller's.
            *number = unsafe { *from.add(row * stride + col) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{Line, SIDE};

    /// # Safety
    /// Those of `transpose` above; the processor has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn transpose(from: *const bf16, stride: usize, lines: &mut [Line; SIDE]) {
        for (tile, lines) in lines.chunks_exact_mut(16).enumerate() {
            // SAFETY: the caller's.
            let row = |i: usize| unsafe { _mm512_loadu_si512(from.add((tile * 16 + i) * stride).cast()) };
            let mut x: [__m512i; 16] = std::array::from_fn(row);
            for d in [1, 2, 4, 8] {
                let low: [i32; 16] = std::array::from_fn(|i| if i & d == 0 { i } else { i - d + 16 } as i32);
                let high: [i32; 16] = std::array::from_fn(|i| if i & d == 0 { i + d } else { i + 16 } as i32);
                // SAFETY: 16 numbers each.
                let [low, high] = [low, high].map(|x| unsafe { _mm512_loadu_si512(x.as_ptr().cast()) });
                for i in (0..16).filter(|i| i & d == 0) {
                    let (a, b) = (x[i], x[i + d]);
                    x[i] = _mm512_permutex2var_epi32(a, low, b);
                    x[i + d] = _mm512_permutex2var_epi32(a, high, b);
                }
            }
            for (line, x) in lines.iter_mut().zip(x) {
                // SAFETY: a line is a vector.
                unsafe { _mm512_store_si512((line as *mut Line).cast(), x) };
            }
        }
    }

    /// # Safety
    /// Those of `interleave` above; the processor has AVX-512 BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn interleave(from: *const bf16, stride: usize, lines: &mut [Line; SIDE]) {
        for tile in 0..2 {
            let pairs: [i16; 32] = std::array::from_fn(|i| (tile * 16 + i / 2 + i % 2 * 32) as i16);
            for i in 0..16 {
                // SAFETY: the caller's.
                unsafe {
                    let row = |i: usize| _mm512_loadu_si512(from.add(i * stride).cast());
                    let pairs = _mm512_loadu_si512(pairs.as_ptr().cast());
                    let line = _mm512_permutex2var_epi16(row(2 * i), pairs, row(2 * i + 1));
                    _mm512_store_si512((&raw mut lines[tile * 16 + i]).cast(), line);
                }
            }
        }
    }
}
