//! Forward pass of attention on the CPU, tile by tile.

use rayon::prelude::*;

use super::super::microkernel::{COLUMNS, Extent, Lhs, Output, Rhs, multiply};
use super::super::simd::Isa;
use super::super::simd_math::{LANES, exp2, sum, wide};
use super::heads::{Head, Panels, rows_by_head};
use super::{Mask, Sizes};
use crate::process::allocations;

/// Queries and keys of a tile: its scores take 48 KB.
const QUERIES: usize = 96;
const KEYS: usize = 128;

/// Returns the output (B, S, H, K), and the binary logarithm of each query's sum of exponentials (B, H, S).
pub fn forward(sizes: &Sizes, mask: Option<&Mask>, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![0.0; sizes.batch * sizes.queries * sizes.row()];
    let mut log_sums = vec![0.0; sizes.batch * sizes.heads * sizes.queries];
    let isa = Isa::detect();
    let scratch = QUERIES * (2 * sizes.padded() + KEYS);
    let of_head = (sizes.keys * (sizes.width + sizes.padded()) + scratch) * size_of::<f32>();
    let of_rows = sizes.batch * sizes.heads * sizes.queries * size_of::<&[f32]>();
    allocations::elsewhere(of_rows, of_head, sizes.batch * sizes.heads);
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
    /// (L, K padded)
    values: Vec<f32>,
}

impl Keys {
    fn new(sizes: &Sizes, index: usize, k: &[f32], v: &[f32]) -> Self {
        let mut keys = Panels::new(sizes, sizes.keys);
        let mut values = vec![0.0; sizes.keys * sizes.padded()];
        keys.fill(&Head::new(sizes, index, sizes.keys, k), 0, sizes.keys);
        Head::new(sizes, index, sizes.keys, v).copy(0, 1.0, sizes.padded(), &mut values);
        Self { keys, values }
    }
}

/// Buffers of one thread.
struct Scratch {
    q: Vec<f32>,      // (QUERIES, K padded)
    scores: Vec<f32>, // (QUERIES, KEYS)
    out: Vec<f32>,    // (QUERIES, K padded)
}

impl Scratch {
    fn new(sizes: &Sizes) -> Self {
        Self {
            q: vec![0.0; QUERIES * sizes.padded()],
            scores: vec![0.0; QUERIES * KEYS],
            out: vec![0.0; QUERIES * sizes.padded()],
        }
    }
}

/// Running softmax of some queries over the keys seen so far.
struct Running {
    maxima: [f32; QUERIES],
    sums: [f32; QUERIES],
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
        let (count, padded) = (places.len(), self.sizes.padded());
        let Scratch { q, scores, out } = scratch;
        let q = &mut q[..count * padded];
        self.queries.copy(first, self.sizes.exp2_scale(), padded, q);
        let out = &mut out[..count * padded];
        // Not minus infinity: a tile whose keys are all masked with it must vanish, without NaN.
        let mut running = Running {
            maxima: [f32::MIN; QUERIES],
            sums: [0.0; QUERIES],
        };
        for from in (0..self.sizes.keys).step_by(KEYS) {
            let len = KEYS.min(self.sizes.keys - from);
            let scores = &mut scores[..count * KEYS];
            self.keys.keys.products(self.isa, q, from, len, scores, KEYS);
            if !len.is_multiple_of(COLUMNS) {
                for scores in scores.chunks_exact_mut(KEYS) {
                    scores[len..len.next_multiple_of(COLUMNS)].fill(f32::NEG_INFINITY);
                }
            }
            if let Some(mask) = self.mask {
                for (i, scores) in scores.chunks_exact_mut(KEYS).enumerate() {
                    add(&mut scores[..len], mask.row(self.sizes, self.index, first + i, from));
                }
            }
            soften(scores, len, &mut running, out, padded);
            let extent = Extent {
                rows: count,
                cols: padded,
                depth: len,
            };
            let weights = Lhs {
                numbers: scores,
                row: KEYS,
                col: 1,
            };
            let values = Rhs {
                numbers: &self.keys.values[from * padded..],
                step: padded,
            };
            let place = Output {
                numbers: out,
                step: padded,
                add: from > 0,
            };
            multiply(self.isa, extent, weights, values, place);
        }
        for (i, (place, out)) in places.iter_mut().zip(out.chunks_exact(padded)).enumerate() {
            let sum = running.sums[i];
            // A fully masked query gives zeros.
            let (factor, log_sum) = match sum {
                0.0 => (0.0, f32::INFINITY),
                _ => (1.0 / sum, running.maxima[i] + sum.log2()),
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

wide! {
    /// Turns scores into 2^(score - maximum), updates the maximum and rescales the sums kept under a smaller one.
    fn soften(scores: &mut [f32], len: usize, running: &mut Running, out: &mut [f32], padded: usize) {
        let rows = scores.chunks_exact_mut(KEYS).zip(out.chunks_exact_mut(padded));
        for (i, (scores, out)) in rows.enumerate() {
            let (scores, _) = scores[..len.next_multiple_of(LANES)].as_chunks_mut::<LANES>();
            let mut maxima = [running.maxima[i]; LANES];
            for scores in &*scores {
                for lane in 0..LANES {
                    maxima[lane] = if scores[lane] > maxima[lane] { scores[lane] } else { maxima[lane] };
                }
            }
            let before = running.maxima[i];
            let now = maxima.into_iter().fold(before, f32::max);
            let mut sums = [0f32; LANES];
            for scores in scores {
                for lane in 0..LANES {
                    scores[lane] = exp2(scores[lane] - now);
                    sums[lane] += scores[lane];
                }
            }
            let mut faded = 1.0;
            if now > before {
                faded = exp2(before - now);
                for number in out {
                    *number *= faded;
                }
            }
            running.maxima[i] = now;
            running.sums[i] = running.sums[i] * faded + sum(sums);
        }
    }
}
