//! Layers that are rows of one fused matrix in the makers' files: query, key and value, or those and a feed-forward layer.
//!
//! The sizes of the parts follow from the fused matrix (out, in): equal shares of its rows, or as many rows as it has
//! inputs. Biases and scales, which have a number a row, are cut in the same places.

use std::iter;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::ops::stored::StoredMatrix;

/// Rows of a fused layer (out, in) that are a layer of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// All of them, the second half first.
    HalvesSwapped,
    /// Share number `index` of `count` equal ones.
    Share {
        /// Number of the share.
        index: usize,
        /// Number of all shares.
        count: usize,
    },
    /// As many rows as there are inputs, behind `index` times as many.
    Square {
        /// Number of such parts before this one.
        index: usize,
    },
    /// Everything behind `index` times as many rows as there are inputs.
    Rest {
        /// Number of such parts before this one.
        index: usize,
    },
    /// All of a matrix with more rows than inputs, and none of another.
    IfWider,
    /// All of a matrix with no more rows than inputs, and none of another.
    IfNarrower,
}

impl Rows {
    /// Returns the rows of a fused layer with so many outputs and inputs, in the order of the layer, none if it is not this
    /// layer; None if it cannot be divided so. `inputs` may be unknown where the rows do not depend on it.
    pub fn ranges(self, outputs: usize, inputs: Option<usize>) -> Option<Vec<Range<usize>>> {
        let one =
            |range: Range<usize>| (range.end <= outputs && !range.is_empty()).then(|| iter::once(range).collect());
        match self {
            Self::All => Some(iter::once(0..outputs).collect()),
            Self::HalvesSwapped => {
                let half = outputs / 2;
                outputs.is_multiple_of(2).then(|| vec![half..outputs, 0..half])
            }
            Self::Share { index, count } => {
                let share = outputs / count;
                let whole = outputs.is_multiple_of(count);
                whole.then(|| one(index * share..(index + 1) * share)).flatten()
            }
            Self::Square { index } => one(index * inputs?..(index + 1) * inputs?),
            Self::Rest { index } => one(index * inputs?..outputs),
            Self::IfWider | Self::IfNarrower => {
                let is_this = (outputs > inputs?) == (self == Self::IfWider);
                Some(is_this.then_some(0..outputs).into_iter().collect())
            }
        }
    }
}

/// Returns rows of a tensor, one range after the other.
///
/// # Errors
/// Fails for rows that it does not have.
pub fn take(tensor: &Tensor, ranges: &[Range<usize>]) -> Result<Tensor> {
    let pieces = ranges.iter().map(|range| tensor.narrow(0, range.start, range.len()));
    match pieces.collect::<Result<Vec<_>>>()?.as_slice() {
        [piece] => piece.contiguous(),
        pieces => Tensor::cat(pieces, 0),
    }
}

/// A stored matrix with its rows in another order.
#[derive(Debug)]
pub(super) struct Reordered {
    matrix: Arc<dyn StoredMatrix>,
    /// Rows of the matrix, which together are all.
    ranges: Vec<Range<usize>>,
}

impl Reordered {
    pub(super) fn new(matrix: Arc<dyn StoredMatrix>, ranges: &[Range<usize>]) -> Self {
        let ranges = ranges.to_vec();
        Self { matrix, ranges }
    }
}

impl StoredMatrix for Reordered {
    fn shape(&self) -> (usize, usize) {
        self.matrix.shape()
    }

    fn bytes(&self) -> usize {
        self.matrix.bytes()
    }

    fn device(&self) -> &Device {
        self.matrix.device()
    }

    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        let (mut pieces, mut first) = (Vec::new(), 0);
        for rows in &self.ranges {
            let last = first + rows.len();
            let (from, to) = (range.start.max(first), range.end.min(last));
            if from < to {
                pieces.push(
                    self.matrix
                        .rows(rows.start + from - first..rows.start + to - first, dtype)?,
                );
            }
            first = last;
        }
        if range.end > first || pieces.is_empty() {
            bail!("rows {range:?} of a matrix of {first}");
        }
        Tensor::cat(&pieces, 0)
    }
}
