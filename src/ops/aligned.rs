//! Buffers that start at a cache line: of a vector that crosses two lines each load counts twice, a tenth to a quarter of a
//! product's time.

use std::ops::{Deref, DerefMut};

/// Numbers of f32 in a cache line, and in the widest register.
pub const LINE: usize = 16;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Zeroed numbers, the first at a cache line.
#[derive(Debug)]
pub struct Aligned {
    lines: Vec<Line>,
}

impl Aligned {
    /// Allocates at least so many numbers: whole lines.
    pub fn zeros(count: usize) -> Self {
        Self {
            lines: vec![Line([0.0; LINE]); count.div_ceil(LINE)],
        }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is its numbers, without gaps.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LINE) }
    }
}
