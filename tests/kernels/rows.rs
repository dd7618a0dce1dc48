//! Samples in rows by parts, for norms and gated residuals.

use candle_core::DType;
use vtrain::ops::kernel::rows::Rows;

use super::exact::{BOTH, Exact};

/// Samples, parts, features; whether all samples share a table.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub batch: usize,
    pub parts: &'static [usize],
    pub width: usize,
    pub shared: bool,
    pub dtype: DType,
}

/// Widths with and without whole packs of 16 bytes; less than a warp, more than a warp, more than 512 threads take at
/// once; parts of one row, of none, and as many as a kernel knows; rows of a part in more sums than one.
const SHAPES: [(usize, &[usize], usize, bool); 13] = [
    (1, &[1], 1, true),
    (2, &[3], 7, false),
    (2, &[2, 3], 8, true),
    (3, &[1, 4], 33, false),
    (2, &[0, 2], 64, false),
    (2, &[20, 31], 64, true),
    (2, &[2, 0], 100, true),
    (1, &[5], 128, false),
    (2, &[1, 1, 2], 264, true),
    (1, &[1, 1, 1, 1, 1, 1, 1, 1], 40, false),
    (2, &[150], 24, false),
    (1, &[2], 1111, true),
    (1, &[1, 1], 4352, false),
];

pub fn cases() -> impl Iterator<Item = Case> {
    let of = |dtype| {
        move |(batch, parts, width, shared)| Case {
            batch,
            parts,
            width,
            shared,
            dtype,
        }
    };
    BOTH.into_iter()
        .flat_map(move |dtype| SHAPES.into_iter().map(of(dtype)))
}

impl Case {
    pub fn rows(&self) -> Rows<'static> {
        Rows {
            batch: self.batch,
            parts: self.parts,
            width: self.width,
            dtype: self.dtype,
        }
    }

    pub fn count(&self) -> usize {
        self.batch * self.parts.iter().sum::<usize>()
    }

    /// Samples of a table.
    pub fn samples(&self) -> usize {
        if self.shared { 1 } else { self.batch }
    }

    /// Numbers of a table.
    pub fn table(&self) -> usize {
        self.samples() * self.parts.len() * self.width
    }

    /// The sample and the part of each row.
    pub fn places(&self) -> Vec<(usize, usize)> {
        let mut places = Vec::new();
        for sample in 0..self.batch {
            for (part, rows) in self.parts.iter().enumerate() {
                places.extend(std::iter::repeat_n((sample, part), *rows));
            }
        }
        places
    }

    /// A table's row for a row of all samples.
    pub fn row<'a>(&self, table: &'a [f64], (sample, part): (usize, usize)) -> &'a [f64] {
        let sample = if self.shared { 0 } else { sample };
        &table[(sample * self.parts.len() + part) * self.width..][..self.width]
    }

    /// The sums of `terms` (rows, D) over the rows of each part: (B, P, D).
    pub fn summed(&self, terms: &[Exact]) -> Vec<Exact> {
        let mut sums = vec![Exact::default(); self.batch * self.parts.len() * self.width];
        for ((sample, part), terms) in self.places().into_iter().zip(terms.chunks(self.width)) {
            let at = (sample * self.parts.len() + part) * self.width;
            for (sum, term) in sums[at..].iter_mut().zip(terms) {
                *sum = Exact::new(sum.value + term.value, sum.size + term.size);
            }
        }
        sums
    }

    /// Sums in slices (B, P, slices, D), added up.
    pub fn gathered(&self, sums: &[f64], slices: usize) -> Vec<f64> {
        let mut all = Vec::new();
        for slices in sums.chunks(slices * self.width) {
            all.extend((0..self.width).map(|at| slices.iter().skip(at).step_by(self.width).sum::<f64>()));
        }
        all
    }
}
