//! Forward pass of attention on the CPU, tile by tile.

use rayon::prelude::*;

use super::super::aligned::Aligned;
use super::super::microkernel::{COLUMNS, Extent, Lhs, Output, Rhs, multiply};
use super::super::simd::Isa;
use super::super::simd_math::{sum, wide};
use super::heads::{Head, Panels, rows_by_head};
use super::softmax::{Running, Tile, soften};
use super::{Mask, Sizes};
use crate::process::allocations;

/// Queries and keys of a tile.
const QUERIES: usize = 96;
const KEYS: usize = 128;
/// Distance between rows of scores: no power of two, as for [`Sizes::step`].
const SCORES: usize = KEYS + COLUMNS;

/// Returns the output (B, S, H, K), and the binary logarithm of each query's sum of exponentials (B, H, S).
pub fn forward(sizes: &Sizes, mask: Option<&Mask>, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![0.0; sizes.batch * sizes.queries * sizes.row()];
    let mut log_sums = vec![0.0; sizes.batch * sizes.heads * sizes.queries];
    let isa = Isa::detect();
    let scratch = QUERIES * (2 * sizes.step() + SCORES);
    let of_head = (sizes.keys * (sizes.width + sizes.step()) + scratch) * size_of::<f32>();
    let of_rows = sizes.batch * sizes.heads * sizes.queries * size_of::<&[f32]>();
    allocations::elsewhere(of_rows, of_head, sizes.batch * sizes.heads);
    if allocations::is_recording() {
        return (out, log_sums);
    }
    let heads = rows_by_head(sizes, sizes.queries, Some(&mut out)).into_par_iter();
    let heads = heads.zip(log_sums.par_chunks_mut(sizes.queries)).enumerate();
    heads.for_each(|(index, (mut out, log_sums))| {
        let work = Work {
            isa,
            sizes,
            mask,
            index,
            queries: Head::new(sizes, index, sizes.queries, q),
            keys: Keys::new(sizes, index, k, v),
        };
        let blocks = out.par_chunks_mut(QUERIES).zip(log_sums.par_chunks_mut(QUERIES));
        blocks.enumerate().for_each_init(
            || Scratch::new(sizes),
            |scratch, (block, (out, log_sums))| work.block(block * QUERIES, scratch, out, log_sums),
        );
    });
    (out, log_sums)
}

/// Keys and values of one head.
struct Keys {
    keys: Panels,
    /// (L, K padded), `step` apart
    values: Aligned,
}

impl Keys {
    fn new(sizes: &Sizes, index: usize, k: &[f32], v: &[f32]) -> Self {
        let mut keys = Panels::new(sizes, sizes.keys);
        let mut values = Aligned::zeros(sizes.keys * sizes.step());
        keys.fill(&Head::new(sizes, index, sizes.keys, k), 0, sizes.keys);
        Head::new(sizes, index, sizes.keys, v).copy(0, 1.0, sizes.step(), &mut values);
        Self { keys, values }
    }
}

/// Buffers of one thread.
struct Scratch {
    q: Aligned,      // (QUERIES, K padded), `step` apart
    scores: Aligned, // (QUERIES, KEYS), `SCORES` apart
    out: Aligned,    // (QUERIES, K padded), `step` apart
}

impl Scratch {
    fn new(sizes: &Sizes) -> Self {
        Self {
            q: Aligned::zeros(QUERIES * sizes.step()),
            scores: Aligned::zeros(QUERIES * SCORES),
            out: Aligned::zeros(QUERIES * sizes.step()),
        }
    }
}

/// One head.
struct Work<'a> {
    isa: Isa,
    sizes: &'a Sizes,
    mask: Option<&'a Mask>,
    index: usize,
    queries: Head<'a>,
    keys: Keys,
}

impl Work<'_> {
    /// Processes the queries from `first` on, one for each entry of `places`.
    fn block(&self, first: usize, scratch: &mut Scratch, places: &mut [&mut [f32]], log_sums: &mut [f32]) {
        let (count, padded, step) = (places.len(), self.sizes.padded(), self.sizes.step());
        let Scratch { q, scores, out } = scratch;
        let q = &mut q[..count * step];
        self.queries.copy(first, self.sizes.exp2_scale(), step, q);
        let out = &mut out[..count * step];
        let mut running = [Running::START; QUERIES];
        for from in (0..self.sizes.keys).step_by(KEYS) {
            let len = KEYS.min(self.sizes.keys - from);
            let scores = &mut scores[..count * SCORES];
            self.keys.keys.products(self.isa, q, from, len, scores, SCORES);
            if !len.is_multiple_of(COLUMNS) {
                for scores in scores.chunks_exact_mut(SCORES) {
                    scores[len..len.next_multiple_of(COLUMNS)].fill(f32::NEG_INFINITY);
                }
            }
            if let Some(mask) = self.mask {
                for (i, scores) in scores.chunks_exact_mut(SCORES).enumerate() {
                    add(&mut scores[..len], mask.row(self.sizes, self.index, first + i, from));
                }
            }
            let tile = Tile {
                numbers: scores,
                step: SCORES,
                len: len.next_multiple_of(COLUMNS),
            };
            let sums = Tile {
                numbers: out,
                step,
                len: padded,
            };
            soften(self.isa, tile, &mut running, sums);
            let extent = Extent {
                rows: count,
                cols: padded,
                depth: len,
            };
            let weights = Lhs {
                numbers: scores,
                row: SCORES,
                col: 1,
            };
            let values = Rhs {
                numbers: &self.keys.values[from * step..],
                step,
            };
            let place = Output {
                numbers: out,
                step,
                add: from > 0,
            };
            multiply(self.isa, extent, weights, values, place);
        }
        for (i, (place, out)) in places.iter_mut().zip(out.chunks_exact(step)).enumerate() {
            let Running { largest, sums } = running[i];
            let sum = sum(sums);
            // A fully masked query gives zeros.
            let (factor, log_sum) = match sum {
                0.0 => (0.0, f32::INFINITY),
                _ => (1.0 / sum, largest + sum.log2()),
            };
            for (to, from) in place.iter_mut().zip(out) {
                *to = from * factor;
            }
            log_sums[i] = log_sum;
        }
    }
}

wide! {
    fn add(to: &mut [f32], from: &[f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}
