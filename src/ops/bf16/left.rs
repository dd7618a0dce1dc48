//! Rows of a left matrix, where they are or packed into lines.

use half::bf16;

use super::line::{Line, SIDE};

/// 32 rows of a, as a block reads them.
#[derive(Debug, Clone, Copy)]
pub struct Left {
    start: *const bf16,
    /// Distance between rows, in numbers.
    row: usize,
    /// Distance between steps, in numbers.
    step: usize,
}

impl Left {
    /// Rows that lie `stride` numbers apart.
    pub fn rows(start: *const bf16, stride: usize) -> Self {
        Self {
            start,
            row: stride,
            step: SIDE,
        }
    }

    /// Rows packed into lines.
    pub fn packed(lines: *const Line) -> Self {
        Self {
            start: lines.cast(),
            row: SIDE,
            step: SIDE * SIDE,
        }
    }

    /// Returns where row i begins.
    pub(super) fn row(&self, i: usize) -> *const bf16 {
        self.start.wrapping_add(i * self.row)
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.row * size_of::<bf16>()
    }

    pub(super) fn step_bytes(&self) -> usize {
        self.step * size_of::<bf16>()
    }

    /// Returns the numbers of row i in a step.
    ///
    /// # Safety
    /// They can be read.
    pub(super) unsafe fn numbers(&self, i: usize, step: usize) -> [bf16; SIDE] {
        let start = self.row(i).wrapping_add(step * self.step);
        // SAFETY: the caller's.
        unsafe { start.cast::<[bf16; SIDE]>().read_unaligned() }
    }
}
