//! The way forward, tile by tile.

use rayon::prelude::*;

use super::super::product::{Matrix, Threads, product};
use super::super::wide::{LANES, exp, sum, wide};
use super::{Mask, Sizes};

/// Queries and keys of a tile. Its scores take 128 KB, a part of the second-level cache.
pub const QUERIES: usize = 64;
pub const KEYS: usize = 512;

/// The output (B, S, H, K), and each query's log-sum-exp (B, S, H).
pub fn forward(sizes: &Sizes, mask: Option<&Mask>, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (row, heads) = (sizes.row(), sizes.heads);
    let mut out = vec![0.0; sizes.batch * sizes.queries * row];
    let mut log_sums = vec![0.0; sizes.batch * sizes.queries * heads];
    // A piece of work is all heads of some queries: their outputs lie next to each other.
    let pieces = out
        .par_chunks_mut(sizes.queries * row)
        .zip(log_sums.par_chunks_mut(sizes.queries * heads))
        .enumerate()
        .flat_map(|(sample, (out, log_sums))| {
            out.par_chunks_mut(QUERIES * row)
                .zip(log_sums.par_chunks_mut(QUERIES * heads))
                .enumerate()
                .map(move |(piece, parts)| (sample, piece * QUERIES, parts))
        });
    pieces.for_each_init(
        || vec![0.0; QUERIES * KEYS],
        |scores, (sample, first, (out, log_sums))| {
            for head in 0..heads {
                let tile = Tile {
                    sizes,
                    mask,
                    sample,
                    head,
                    first,
                };
                tile.run(q, k, v, scores, out, log_sums);
            }
        },
    );
    (out, log_sums)
}

/// The queries from `first` on, of one head.
struct Tile<'a> {
    sizes: &'a Sizes,
    mask: Option<&'a Mask>,
    sample: usize,
    head: usize,
    first: usize,
}

impl Tile<'_> {
    fn run(&self, q: &[f32], k: &[f32], v: &[f32], scores: &mut [f32], out: &mut [f32], log_sums: &mut [f32]) {
        let &Sizes {
            queries,
            keys,
            heads,
            width,
            ..
        } = self.sizes;
        let (row, column) = (self.sizes.row(), self.head * width);
        let count = log_sums.len() / heads;
        let at = |tokens: usize, token: usize| (self.sample * tokens + token) * row + column;
        let q = Matrix::strided(&q[at(queries, self.first)..], count, width, row);
        // Not minus infinity: where all of a tile is masked by that, nothing is to be left of it, and no NaN.
        let (mut maxima, mut sums) = ([f32::MIN; QUERIES], [0f32; QUERIES]);
        for from in (0..keys).step_by(KEYS) {
            let len = KEYS.min(keys - from);
            let k = Matrix::strided(&k[at(keys, from)..], len, width, row);
            let v = Matrix::strided(&v[at(keys, from)..], len, width, row);
            product(scores, len, 0.0, self.sizes.scale(), q, k.t(), Threads::One);
            for (i, scores) in scores.chunks_mut(len).take(count).enumerate() {
                if let Some(mask) = self.mask {
                    add(scores, mask.row(self.sample, self.head, self.first + i, from));
                }
                let before = maxima[i];
                maxima[i] = before.max(largest(scores));
                let faded = fade(before, maxima[i]);
                sums[i] = sums[i] * faded + exponentials(scores, maxima[i]);
                if faded != 1.0 {
                    scale(&mut out[i * row + column..][..width], faded);
                }
            }
            product(
                &mut out[column..],
                row,
                1.0,
                1.0,
                Matrix::new(scores, count, len),
                v,
                Threads::One,
            );
        }
        for i in 0..count {
            scale(&mut out[i * row + column..][..width], 1.0 / sums[i]);
            log_sums[i * heads + self.head] = maxima[i] + sums[i].ln();
        }
    }
}

/// By how much what was summed up under the old maximum counts less under the new one.
fn fade(before: f32, now: f32) -> f32 {
    if before == now { 1.0 } else { (before - now).exp() }
}

wide! {
    fn add(to: &mut [f32], from: &[f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}

wide! {
    fn scale(numbers: &mut [f32], by: f32) {
        for number in numbers {
            *number *= by;
        }
    }
}

wide! {
    /// The largest of some numbers; what is no number does not count.
    fn largest(numbers: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = numbers.as_chunks::<LANES>();
        for chunk in whole {
            for lane in 0..LANES {
                lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            }
        }
        lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max)
    }
}

wide! {
    /// Replaces each x by e^(x - max); returns their sum.
    fn exponentials(numbers: &mut [f32], max: f32) -> f32 {
        let mut lanes = [0f32; LANES];
        let (whole, rest) = numbers.as_chunks_mut::<LANES>();
        for chunk in whole {
            for lane in 0..LANES {
                chunk[lane] = exp(chunk[lane] - max);
                lanes[lane] += chunk[lane];
            }
        }
        let mut total = sum(lanes);
        for number in rest {
            *number = exp(*number - max);
            total += *number;
        }
        total
    }
}
