//! Packed operands: right matrices before or during a product, and left ones whose columns are the rows of c.

use half::bf16;
use rayon::prelude::*;

use super::line::{Line, SIDE};
use super::pack::Rows;
use crate::process::allocations;

/// Steps packed by a thread at a time.
const PIECE: usize = 16;

/// A right matrix b (depth, columns).
#[derive(Debug, Clone, Copy)]
pub enum Right<'a> {
    /// In lines.
    Packed(&'a Packed),
    /// The transpose of these rows: W in y = x W^T.
    Transposed(Rows<'a>),
    /// These rows: W in dx = dy W.
    Plain(Rows<'a>),
}

impl Right<'_> {
    /// Returns the number of columns.
    pub fn cols(&self) -> usize {
        match self {
            Self::Packed(b) => b.outer,
            Self::Transposed(w) => w.rows(),
            Self::Plain(w) => w.cols(),
        }
    }

    /// True for one without numbers.
    pub(super) fn is_outline(&self) -> bool {
        match self {
            Self::Packed(_) => false,
            Self::Transposed(w) | Self::Plain(w) => w.is_outline(),
        }
    }

    /// Returns the length of the inner axis.
    pub fn depth(&self) -> usize {
        match self {
            Self::Packed(b) => b.depth,
            Self::Transposed(w) => w.cols(),
            Self::Plain(w) => w.rows(),
        }
    }

    /// Packs the steps from `first` on of a block of columns, as many as there are lines for.
    pub(super) fn pack(&self, block: usize, first: usize, lines: &mut [Line]) {
        let steps = (first..).zip(lines.as_chunks_mut().0);
        match self {
            Self::Packed(b) => lines.copy_from_slice(b.lines(block, first, lines.len() / SIDE)),
            Self::Transposed(w) => {
                steps.for_each(|(step, lines)| w.pack_right_transposed(block * SIDE, step * SIDE, lines));
            }
            Self::Plain(w) => steps.for_each(|(step, lines)| w.pack_right(step * SIDE, block * SIDE, lines)),
        }
    }
}

/// A packed matrix: the steps one behind the other for every 32 rows of a, or 32 columns of b.
#[derive(Debug)]
pub struct Packed {
    lines: Vec<Line>,
    /// As much memory while a record runs, which sees numbers alone.
    _recorded: Vec<bf16>,
    /// Rows of a, or columns of b.
    outer: usize,
    depth: usize,
}

impl Packed {
    /// Right matrix that is put together of parts of its inner axis, zero at first.
    pub fn zeros(outer: usize, depth: usize) -> Self {
        let lines = outer.div_ceil(SIDE) * depth.div_ceil(SIDE) * SIDE;
        let (lines, recorded) = match allocations::is_recording() {
            true => (Vec::new(), Vec::with_capacity(outer * depth)), // not in whole lines: few stand for many
            false => (vec![Line::ZERO; lines], Vec::new()),
        };
        Self {
            lines,
            _recorded: recorded,
            outer,
            depth,
        }
    }

    /// Left matrix whose columns these rows are.
    pub fn left_of_columns(rows: Rows) -> Self {
        let mut packed = Self::zeros(rows.cols(), rows.rows());
        packed.fill(0, rows.rows(), |block, step, lines| {
            rows.pack_left_transposed(step * SIDE, block * SIDE, lines);
        });
        packed
    }

    /// Packs rows of a right matrix from `first`, a multiple of 32, on.
    pub fn put(&mut self, first: usize, rows: Rows) {
        if rows.is_outline() {
            return;
        }
        assert!(first.is_multiple_of(SIDE), "packed rows begin with a step");
        self.fill(first, rows.rows(), |block, step, lines| {
            rows.pack_right(step * SIDE, block * SIDE, lines);
        });
    }

    /// Fills `count` numbers of the inner axis from `first` on: each block, and each step counted from `first`.
    fn fill(&mut self, first: usize, count: usize, each: impl Fn(usize, usize, &mut [Line; SIDE]) + Sync) {
        if allocations::is_recording() {
            return;
        }
        let (first, steps) = (first / SIDE, count.div_ceil(SIDE));
        let panel = (self.depth.div_ceil(SIDE) * SIDE).max(1);
        let blocks = self.lines.par_chunks_mut(panel).enumerate();
        blocks.for_each(|(block, lines)| {
            let pieces = lines[first * SIDE..][..steps * SIDE].par_chunks_mut(PIECE * SIDE);
            pieces.enumerate().for_each(|(piece, lines)| {
                for (step, lines) in (piece * PIECE..).zip(lines.as_chunks_mut().0) {
                    each(block, step, lines);
                }
            });
        });
    }

    /// Returns steps of a block.
    pub(super) fn lines(&self, block: usize, first: usize, count: usize) -> &[Line] {
        &self.lines[(block * self.depth.div_ceil(SIDE) + first) * SIDE..][..count * SIDE]
    }

    /// Returns the rows of a, or the columns of b.
    pub fn outer(&self) -> usize {
        self.outer
    }

    /// Returns the length of the inner axis.
    pub fn depth(&self) -> usize {
        self.depth
    }
}
