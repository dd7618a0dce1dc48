//! Rows of samples by parts, in the form kernels take: see `Parts` of kernel.cuh.

use candle_core::DType;

use super::{Grid, Structure};

/// Largest number of parts a kernel supports.
pub const MOST_PARTS: usize = 8;

/// Minimum rows of a partial sum, and maximum sums of a part.
const SLICE_ROWS: usize = 64;
const MOST_SLICES: usize = 64;

/// `Parts` of kernel.cuh: maps rows of a sample to rows of a table (B or 1, P, D).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    rows: i32,
    shared: i32,
    count: i32,
    ends: [i32; MOST_PARTS],
}

// SAFETY: the same fields in the same order as in kernel.cuh.
unsafe impl Structure for Parts {}

/// Samples (B, R, D), whose R rows are divided into consecutive parts.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Samples.
    pub batch: usize,
    /// Rows of each part, together R; at most [`MOST_PARTS`] parts.
    pub parts: &'a [usize],
    /// Numbers of a row.
    pub width: usize,
    /// Number format of the rows.
    pub dtype: DType,
}

impl Rows<'_> {
    /// Returns the rows of all samples.
    pub fn count(&self) -> usize {
        self.batch * self.parts.iter().sum::<usize>()
    }

    /// Returns the parts, for a table of `samples` samples.
    pub fn parts(&self, samples: usize) -> Parts {
        let mut ends = [0; MOST_PARTS];
        let mut end = 0;
        for (at, rows) in ends.iter_mut().zip(self.parts) {
            end += *rows as i32;
            *at = end;
        }
        Parts {
            rows: end,
            shared: i32::from(samples == 1),
            count: self.parts.len() as i32,
            ends,
        }
    }

    /// Returns the number of partial sums per part where a kernel adds up rows feature by feature.
    pub fn slices(&self) -> usize {
        let rows = self.parts.iter().sum::<usize>() / self.parts.len().max(1);
        rows.div_ceil(SLICE_ROWS).clamp(1, MOST_SLICES)
    }

    /// Grid of a thread for each feature of the sums (B, P, slices, D).
    pub fn sums(&self) -> Grid {
        const THREADS: usize = 128;
        Grid {
            blocks: [
                self.width.div_ceil(THREADS),
                self.slices(),
                self.batch * self.parts.len(),
            ],
            threads: THREADS,
            shared: 0,
        }
    }
}
