//! Sequences of several parts, such as text and video: maps rows to rows of a table (B or 1, P, D).

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::kernel::rows::MOST_PARTS;
use super::map::rows_of_piece;

/// Rows per partial sum.
const ROWS: usize = 64;

/// Checks that a table is (B or 1, P, D).
pub fn check(name: &str, table: &Tensor, batch: usize, parts: &[usize], width: usize) -> Result<()> {
    let (samples, count, features) = table.dims3()?;
    if (samples != 1 && samples != batch) || count != parts.len() || features != width {
        candle_core::bail!(
            "{name} {:?} for {batch} samples of {} parts of {width} features",
            table.dims(),
            parts.len()
        );
    }
    Ok(())
}

/// Checks that a kernel supports this many parts.
pub fn suits(x: &Tensor, parts: &[usize]) -> bool {
    x.device().is_cpu() || parts.len() <= MOST_PARTS
}

/// Some rows of one part of one sample.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    sample: usize,
    part: usize,
    /// First row, counted through all samples.
    first: usize,
    rows: usize,
}

/// Cuts the rows of `batch` samples into pieces for partial sums, which cover them in order. `parts` are the rows of each part.
pub fn pieces(batch: usize, parts: &[usize]) -> Vec<Piece> {
    pieces_of(ROWS, batch, parts)
}

/// Cuts rows of this width into pieces that one thread processes at a time, and returns the rows of each as well.
pub fn small_pieces(width: usize, batch: usize, parts: &[usize]) -> (Vec<Piece>, Vec<Range<usize>>) {
    let pieces = pieces_of(rows_of_piece(width), batch, parts);
    let rows = pieces.iter().map(|piece| piece.first..piece.first + piece.rows);
    let rows = rows.collect();
    (pieces, rows)
}

/// Cuts into pieces of at most so many rows.
fn pieces_of(most: usize, batch: usize, parts: &[usize]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut first = 0;
    for sample in 0..batch {
        for (part, rows) in parts.iter().enumerate() {
            for from in (0..*rows).step_by(most) {
                let rows = most.min(rows - from);
                pieces.push(Piece {
                    sample,
                    part,
                    first,
                    rows,
                });
                first += rows;
            }
        }
    }
    pieces
}

impl Piece {
    /// Returns the piece's rows among those of all samples.
    pub fn of<'a>(&self, numbers: &'a [f32], width: usize) -> &'a [f32] {
        &numbers[self.first * width..][..self.rows * width]
    }

    /// Returns the index where its row starts in a table of `numbers` numbers.
    pub fn at(&self, numbers: usize, parts: usize, width: usize) -> usize {
        let shared = numbers == parts * width;
        (if shared { 0 } else { self.sample * parts } + self.part) * width
    }

    /// Returns its row of a table.
    pub fn row<'a>(&self, table: &'a [f32], parts: usize, width: usize) -> &'a [f32] {
        &table[self.at(table.len(), parts, width)..][..width]
    }
}
