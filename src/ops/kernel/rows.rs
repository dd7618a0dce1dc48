//! Rows of samples by parts, as kernels go through them: see `Parts` of kernel.cuh.

use candle_core::DType;

use super::{Grid, Structure};

/// The most parts that a kernel knows.
pub const MOST_PARTS: usize = 8;

/// `Parts` of kernel.cuh: which rows of a sample read which row of a table (B or 1, P, D).
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

/// Samples (B, R, D), whose R rows belong to parts, one behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub batch: usize,
    /// Rows of each part, together R; at most [`MOST_PARTS`] parts.
    pub parts: &'a [usize],
    pub width: usize,
    pub dtype: DType,
}

impl Rows<'_> {
    /// Rows of all samples.
    pub fn count(&self) -> usize {
        self.batch * self.parts.iter().sum::<usize>()
    }

    /// The parts, for a table of `samples` samples.
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

    /// Into how many sums the rows of a part are cut, where a kernel adds them up feature by feature.
    pub fn slices(&self) -> usize {
        let rows = self.parts.iter().sum::<usize>() / self.parts.len().max(1);
        rows.div_ceil(64).clamp(1, 64)
    }

    /// A thread for each feature of the sums (B, P, slices, D).
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
