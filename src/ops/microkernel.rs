//! Single-threaded products of small matrices: `c = a b` or `c += a b` for matrices that stay in the caches.
//!
//! A tile of MR rows and NV vectors of c stays in registers while it walks the inner axis: a broadcast of `a` per NV
//! multiply-adds, a load of `b` per MR. Nothing is packed: the caller lays out `b`, which it reuses many times.

use super::simd::{Isa, Simd};

/// Granularity of the columns of b and c.
pub const COLUMNS: usize = 16;

/// Columns that a tile of the widest registers holds: four registers with six rows measured fastest.
pub const PANEL: usize = 64;

/// Left matrix: the number (i, k) is at `i row + k col`.
#[derive(Debug, Clone, Copy)]
pub struct Lhs<'a> {
    /// Storage of the matrix.
    pub numbers: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

/// Right matrix: the number (k, j) is at `k step + j`.
#[derive(Debug, Clone, Copy)]
pub struct Rhs<'a> {
    /// Storage of the matrix.
    pub numbers: &'a [f32],
    /// Distance between rows.
    pub step: usize,
}

/// Output matrix: the number (i, j) is at `i step + j`.
#[derive(Debug)]
pub struct Output<'a> {
    /// Storage of the product.
    pub numbers: &'a mut [f32],
    /// Distance between rows.
    pub step: usize,
    /// True to add to the previous contents, rather than replacing them.
    pub add: bool,
}

/// Rows of a and c, columns of b and c, and the inner axis.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Rows of a and c.
    pub rows: usize,
    /// Columns of b and c.
    pub cols: usize,
    /// Length of the inner axis.
    pub depth: usize,
}

/// Computes c = a b, or c += a b.
pub fn multiply(isa: Isa, extent: Extent, a: Lhs, b: Rhs, c: Output) {
    let Extent { rows, cols, depth } = extent;
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(
        cols.is_multiple_of(COLUMNS),
        "a product whose columns are not whole vectors"
    );
    assert!(
        (rows - 1) * c.step + cols <= c.numbers.len(),
        "a product beyond its output"
    );
    assert!(
        depth == 0 || (rows - 1) * a.row + (depth - 1) * a.col < a.numbers.len(),
        "a product beyond a"
    );
    assert!(
        depth == 0 || (depth - 1) * b.step + cols <= b.numbers.len(),
        "a product beyond b"
    );
    let raw = Raw {
        extent,
        a: a.numbers.as_ptr(),
        a_row: a.row,
        a_col: a.col,
        b: b.numbers.as_ptr(),
        b_step: b.step,
        c: c.numbers.as_mut_ptr(),
        c_step: c.step,
        add: c.add,
    };
    // SAFETY: the assertions above bound every access; c is borrowed mutably, so neither a nor b overlaps it; the
    // instructions were detected.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::avx512(raw),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::avx2(raw),
            Isa::Portable => raw.panels::<[f32; 8], 2, 4>(),
        }
    }
}

/// A checked product.
#[derive(Clone, Copy)]
struct Raw {
    extent: Extent,
    a: *const f32,
    a_row: usize,
    a_col: usize,
    b: *const f32,
    b_step: usize,
    c: *mut f32,
    c_step: usize,
    add: bool,
}

impl Raw {
    /// Restricts the product to some of the columns.
    #[inline(always)]
    unsafe fn narrow(self, first: usize, cols: usize) -> Self {
        // SAFETY: guaranteed by the caller; these columns are among those of b and c.
        unsafe {
            Self {
                extent: Extent { cols, ..self.extent },
                b: self.b.add(first),
                c: self.c.add(first),
                ..self
            }
        }
    }

    /// Computes all columns, NV vectors at a time.
    #[inline(always)]
    unsafe fn panels<V: Simd, const NV: usize, const MR: usize>(self) {
        let width = NV * V::COUNT;
        for first in (0..self.extent.cols).step_by(width) {
            // SAFETY: guaranteed by the caller; the columns are a multiple of the width.
            unsafe { self.narrow(first, width).tiles::<V, NV, MR>() }
        }
    }

    /// Computes all rows, MR at a time, and the remainder with smaller tiles.
    #[inline(always)]
    unsafe fn tiles<V: Simd, const NV: usize, const MR: usize>(self) {
        let rows = self.extent.rows;
        let mut row = 0;
        // SAFETY: guaranteed by the caller; `row` and the tile's rows stay below `rows`.
        unsafe {
            while row + MR <= rows {
                self.tile::<V, NV, MR>(row);
                row += MR;
            }
            if MR > 6 && row + 6 <= rows {
                self.tile::<V, NV, 6>(row);
                row += 6;
            }
            if MR > 4 && row + 4 <= rows {
                self.tile::<V, NV, 4>(row);
                row += 4;
            }
            if row + 2 <= rows {
                self.tile::<V, NV, 2>(row);
                row += 2;
            }
            if row < rows {
                self.tile::<V, NV, 1>(row);
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<V: Simd, const NV: usize, const MR: usize>(self, row: usize) {
        // SAFETY: the caller has checked that MR rows from `row` on and NV vectors lie within all matrices.
        unsafe {
            let c = self.c.add(row * self.c_step);
            let mut sums = [[V::splat(0.0); NV]; MR];
            if self.add {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load(c.add(i * self.c_step + v * V::COUNT));
                    }
                }
            }
            let mut a = self.a.wrapping_add(row * self.a_row); // never read if the depth is 0
            let mut b = self.b;
            for _ in 0..self.extent.depth {
                let mut vectors = [V::splat(0.0); NV];
                for (v, vector) in vectors.iter_mut().enumerate() {
                    *vector = V::load(b.add(v * V::COUNT));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let factor = V::splat(*a.add(i * self.a_row));
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = sum.add_product(factor, vector);
                    }
                }
                a = a.wrapping_add(self.a_col);
                b = b.wrapping_add(self.b_step);
            }
            for (i, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    sum.store(c.add(i * self.c_step + v * V::COUNT));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256, __m512};

    use super::{COLUMNS, PANEL, Raw};

    /// # Safety
    /// The conditions that `multiply` checks.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512(raw: Raw) {
        let cols = raw.extent.cols;
        let whole = cols - cols % PANEL;
        // SAFETY: guaranteed by the caller.
        unsafe {
            for first in (0..whole).step_by(PANEL) {
                raw.narrow(first, PANEL).tiles::<__m512, 4, 6>();
            }
            let rest = cols - whole;
            if rest > 0 {
                let raw = raw.narrow(whole, rest);
                match rest / COLUMNS {
                    3 => raw.tiles::<__m512, 3, 8>(),
                    2 => raw.tiles::<__m512, 2, 12>(),
                    _ => raw.tiles::<__m512, 1, 12>(),
                }
            }
        }
    }

    /// # Safety
    /// The conditions that `multiply` checks.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(raw: Raw) {
        // SAFETY: guaranteed by the caller.
        unsafe { raw.panels::<__m256, 2, 6>() }
    }
}
