//! Single heads: tensors interleave heads; here each is laid out for the innermost loops.

use super::super::aligned::Aligned;
use super::super::microkernel::{COLUMNS, Extent, Lhs, Output, PANEL, Rhs, multiply};
use super::super::simd::Isa;
use super::Sizes;

/// Tokens of one head in a matrix (B, tokens, H, K).
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    numbers: &'a [f32],
    /// Distance from one token to the next.
    row: usize,
    width: usize,
}

impl<'a> Head<'a> {
    /// Selects the `index`th head, counted through all samples, of a matrix of `tokens` tokens per sample.
    pub fn new(sizes: &Sizes, index: usize, tokens: usize, numbers: &'a [f32]) -> Self {
        let (sample, head) = (index / sizes.heads, index % sizes.heads);
        let row = sizes.row();
        Self {
            numbers: &numbers[sample * tokens * row + head * sizes.width..][..(tokens - 1) * row + sizes.width],
            row,
            width: sizes.width,
        }
    }

    pub fn token(&self, token: usize) -> &'a [f32] {
        &self.numbers[token * self.row..][..self.width]
    }

    /// Copies tokens from `first` on, times a factor: as many as `rows` has, `step` numbers per row.
    pub fn copy(&self, first: usize, factor: f32, step: usize, rows: &mut [f32]) {
        for (i, row) in rows.chunks_exact_mut(step).enumerate() {
            let (numbers, padding) = row.split_at_mut(self.width);
            for (to, from) in numbers.iter_mut().zip(self.token(first + i)) {
                *to = from * factor;
            }
            padding.fill(0.0);
        }
    }
}

/// Tokens of one head, transposed, so that products with them run over tokens.
///
/// A panel holds `PANEL` tokens: feature k of its token j lies at `k PANEL + j`.
pub struct Panels {
    numbers: Aligned,
    width: usize,
    /// Distance between the rows that products are computed with.
    step: usize,
}

impl Panels {
    /// Allocates panels for `tokens` tokens.
    pub fn new(sizes: &Sizes, tokens: usize) -> Self {
        Self {
            numbers: Aligned::zeros(tokens.next_multiple_of(PANEL) * sizes.width),
            width: sizes.width,
            step: sizes.step(),
        }
    }

    /// Copies `count` tokens from `first` on. The rest of the last panel is undefined.
    pub fn fill(&mut self, head: &Head, first: usize, count: usize) {
        let panels = self.numbers.chunks_exact_mut(PANEL * self.width);
        for (panel, from) in panels.zip((0..count).step_by(PANEL)) {
            for token in 0..PANEL.min(count - from) {
                for (k, number) in head.token(first + from + token).iter().enumerate() {
                    panel[k * PANEL + token] = *number;
                }
            }
        }
    }

    /// Computes the products of rows with `len` tokens from `from` on, a whole panel: row i starts at
    /// `i step`, and the rest of the last vector is undefined.
    pub fn products(&self, isa: Isa, rows: &[f32], from: usize, len: usize, to: &mut [f32], step: usize) {
        for panel in (0..len).step_by(PANEL) {
            let extent = Extent {
                rows: rows.len() / self.step,
                cols: PANEL.min((len - panel).next_multiple_of(COLUMNS)),
                depth: self.width,
            };
            let left = Lhs {
                numbers: rows,
                row: self.step,
                col: 1,
            };
            let right = Rhs {
                numbers: &self.numbers[(from + panel) * self.width..],
                step: PANEL,
            };
            let place = Output {
                numbers: &mut to[panel..],
                step,
                add: false,
            };
            multiply(isa, extent, left, right, place);
        }
    }
}

/// Splits a matrix (B, tokens, H, K) into the rows of each head of each sample; no rows without a matrix.
pub fn rows_by_head<'a, T>(sizes: &Sizes, tokens: usize, numbers: Option<&'a mut [T]>) -> Vec<Vec<&'a mut [T]>> {
    let count = if numbers.is_some() { tokens } else { 0 };
    let heads = (0..sizes.batch * sizes.heads).map(|_| Vec::with_capacity(count));
    let mut heads: Vec<Vec<&mut [T]>> = heads.collect();
    let samples = numbers
        .into_iter()
        .flat_map(|numbers| numbers.chunks_exact_mut(tokens * sizes.row()));
    for (sample, heads) in samples.zip(heads.chunks_exact_mut(sizes.heads)) {
        for (i, row) in sample.chunks_exact_mut(sizes.width).enumerate() {
            heads[i % sizes.heads].push(row);
        }
    }
    heads
}
