//! Scales of a matrix: a number for each block of rows and columns.

use candle_core::{Result, bail};

use super::by_blocks;
use super::launch::{KernelForm, Size, bytes_of};
use super::part::{Parts, floats};
use crate::ops::bytes::Numbers;

/// A grid of scales over a matrix (out, in).
#[derive(Debug, Clone)]
pub(super) struct Scales {
    pub(super) numbers: Numbers,
    /// Columns of the matrix.
    features: usize,
    /// Rows and columns that share a scale.
    block: (usize, usize),
}

impl Scales {
    /// Scales for blocks of this many rows and columns, which divide the matrix.
    pub(super) fn new(numbers: Vec<f32>, features: usize, block: (usize, usize)) -> Self {
        Self {
            numbers: numbers.into(),
            features,
            block: (block.0.max(1), block.1.max(1)),
        }
    }

    /// Reads the tensor `name`: one scale for all, (out or a part of it, 1), or (.., parts of in), maybe with a last
    /// side of 1.
    pub(super) fn read(parts: &dyn Parts, name: &str, shape: (usize, usize)) -> Result<Self> {
        let (out_features, features) = shape;
        let sides = parts.part(name)?.shape().to_vec();
        let (down, across) = match sides[..] {
            [] | [1] | [1, 1] => (1, 1),
            [down] | [down, 1] => (down, 1),
            [down, across] | [down, across, 1] => (down, across),
            _ => (0, 0),
        };
        let divides = |parts: usize, side: usize| parts > 0 && side.is_multiple_of(parts);
        if !divides(down, out_features) || !divides(across, features) {
            bail!("the tensor {name} {sides:?} should be scales of a matrix {shape:?}, in equal blocks");
        }
        let numbers = floats(parts, name, down * across)?;
        Ok(Self::new(numbers, features, (out_features / down, features / across)))
    }

    /// Returns the form of codes of a byte each, with these scales; `table` has the number of each code, `zeros` the code
    /// of 0 beside each scale. Numbers are multiplied by `factor` at the end.
    pub(super) fn kernel_form(&self, codes: &[u8], table: &[f32], zeros: Option<&[u8]>, factor: f32) -> KernelForm {
        let (rows, columns) = self.block;
        KernelForm {
            parts: vec![
                Some(codes.to_vec()),
                Some(bytes_of(table)),
                Some(bytes_of(&self.numbers)),
                zeros.map(<[u8]>::to_vec),
            ],
            sizes: bytes_sizes([self.features, rows, columns], factor),
            kernel: BYTES.into(),
            run: columns,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.numbers[..])
    }

    /// Calls `each` with pieces of `numbers` that share a scale: the index of the scale, the index of a piece's first
    /// number, and the piece.
    pub(super) fn pieces(&self, first: usize, numbers: &mut [f32], mut each: impl FnMut(usize, usize, &mut [f32])) {
        let (features, (rows, columns)) = (self.features.max(1), self.block);
        let across = features / columns;
        by_blocks(first, columns, numbers, |_, at, piece| {
            let (row, column) = (at / features, at % features);
            each(row / rows * across + column / columns, at, piece);
        });
    }
}

/// Kernel of codes of a byte each.
const BYTES: &str = "decode_bytes";

fn bytes_sizes(grid: [usize; 3], factor: f32) -> Vec<Size> {
    let sizes = grid.map(|size| Size::I64(size as i64));
    sizes.into_iter().chain([Size::F32(factor)]).collect()
}

/// Returns the form of codes of a byte each without scales.
pub(super) fn unscaled(codes: &[u8], table: &[f32]) -> KernelForm {
    KernelForm {
        parts: vec![Some(codes.to_vec()), Some(bytes_of(table)), None, None],
        sizes: bytes_sizes([1, 1, 1], 1.0),
        kernel: BYTES.into(),
        run: codes.len(),
    }
}

/// Returns the number of each code of 8 bits with a sign.
pub(super) fn signed() -> Vec<f32> {
    (0..=u8::MAX).map(|code| f32::from(code.cast_signed())).collect()
}
