//! The way back, tile by tile.

use rayon::prelude::*;

use super::super::product::{Matrix, Threads, product};
use super::super::wide::{LANES, exp, sum, wide};
use super::{Mask, Sizes};

/// Queries and keys of a tile. Its weights and their gradients take 64 KB each.
const QUERIES: usize = 64;
const KEYS: usize = 256;
/// Keys of a piece of work: many heads are enough pieces for the threads of most machines, long clips give more.
const PIECE: usize = 4096;

/// Gradients of queries (B, S, H, K), keys and values (B, L, H, K).
pub struct Gradients {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// What the way forward left, and the gradient of its output (B, S, H, K).
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub grad: &'a [f32],
    /// (B, S, H)
    pub log_sums: &'a [f32],
}

/// The gradients of everything.
pub fn backward(sizes: &Sizes, mask: Option<&Mask>, left: Left) -> Gradients {
    let &Sizes {
        batch,
        queries,
        keys,
        heads,
        width,
    } = sizes;
    let pieces: Vec<(usize, usize, usize)> = (0..batch)
        .flat_map(|sample| (0..heads).map(move |head| (sample, head)))
        .flat_map(|(sample, head)| (0..keys).step_by(PIECE).map(move |first| (sample, head, first)))
        .collect();
    let parts: Vec<Part> = pieces
        .par_iter()
        .map(|&(sample, head, first)| {
            let piece = Piece {
                sizes,
                mask,
                left,
                sample,
                head,
                first,
                len: PIECE.min(keys - first),
            };
            piece.run()
        })
        .collect();

    // Pieces come sample by sample, head by head, so their sums are made in a fixed order.
    let row = sizes.row();
    let mut all = Gradients {
        q: vec![0.0; batch * queries * row],
        k: vec![0.0; batch * keys * row],
        v: vec![0.0; batch * keys * row],
    };
    for (&(sample, head, first), part) in pieces.iter().zip(&parts) {
        let at = |tokens: usize, token: usize| (sample * tokens + token) * row + head * width;
        add_rows(&mut all.q[at(queries, 0)..], row, &part.q, width);
        add_rows(&mut all.k[at(keys, first)..], row, &part.k, width);
        add_rows(&mut all.v[at(keys, first)..], row, &part.v, width);
    }
    all
}

/// Gradients that some keys of a head give rise to.
struct Part {
    q: Vec<f32>, // (S, K)
    k: Vec<f32>, // (keys of the piece, K)
    v: Vec<f32>, // (keys of the piece, K)
}

/// Some keys of one head, under all its queries.
struct Piece<'a> {
    sizes: &'a Sizes,
    mask: Option<&'a Mask>,
    left: Left<'a>,
    sample: usize,
    head: usize,
    first: usize,
    len: usize,
}

impl Piece<'_> {
    fn run(&self) -> Part {
        let (queries, width) = (self.sizes.queries, self.sizes.width);
        let mut part = Part {
            q: vec![0.0; queries * width],
            k: vec![0.0; self.len * width],
            v: vec![0.0; self.len * width],
        };
        let drifts = self.drifts();
        let (mut weights, mut slopes) = (vec![0.0; QUERIES * KEYS], vec![0.0; QUERIES * KEYS]);
        for from in (0..self.len).step_by(KEYS) {
            let len = KEYS.min(self.len - from);
            for first in (0..queries).step_by(QUERIES) {
                let count = QUERIES.min(queries - first);
                let (weights, slopes) = (&mut weights[..count * len], &mut slopes[..count * len]);
                self.tile(from, first, &drifts, weights, slopes, &mut part);
            }
        }
        part
    }

    /// One tile: the weights p once more, the gradients ds of the scores, and what follows from both.
    fn tile(
        &self,
        from: usize,
        first: usize,
        drifts: &[f32],
        weights: &mut [f32],
        slopes: &mut [f32],
        part: &mut Part,
    ) {
        let Sizes {
            queries,
            keys,
            heads,
            width,
            ..
        } = *self.sizes;
        let (scale, row, column) = (self.sizes.scale(), self.sizes.row(), self.head * width);
        let count = QUERIES.min(queries - first);
        let len = weights.len() / count;
        let query = (self.sample * queries + first) * row + column;
        let key = (self.sample * keys + self.first + from) * row + column;
        let q = Matrix::strided(&self.left.q[query..], count, width, row);
        let grad = Matrix::strided(&self.left.grad[query..], count, width, row);
        let k = Matrix::strided(&self.left.k[key..], len, width, row);
        let v = Matrix::strided(&self.left.v[key..], len, width, row);

        product(weights, len, 0.0, scale, q, k.t(), Threads::One);
        product(slopes, len, 0.0, 1.0, grad, v.t(), Threads::One);
        for i in 0..count {
            let (weights, slopes) = (&mut weights[i * len..][..len], &mut slopes[i * len..][..len]);
            if let Some(mask) = self.mask {
                let mask = mask.row(self.sample, self.head, first + i, self.first + from);
                add(weights, mask);
            }
            let log_sum = self.left.log_sums[(self.sample * queries + first + i) * heads + self.head];
            softmax_back(weights, slopes, log_sum, drifts[first + i]);
        }
        let (p, ds) = (Matrix::new(weights, count, len), Matrix::new(slopes, count, len));
        let keys = from * width..(from + len) * width;
        product(&mut part.v[keys.clone()], width, 1.0, 1.0, p.t(), grad, Threads::One);
        product(&mut part.k[keys], width, 1.0, scale, ds.t(), q, Threads::One);
        product(&mut part.q[first * width..], width, 1.0, scale, ds, k, Threads::One);
    }

    /// sum(do o) of each query.
    fn drifts(&self) -> Vec<f32> {
        let (queries, width) = (self.sizes.queries, self.sizes.width);
        let at = |query: usize| (self.sample * queries + query) * self.sizes.row() + self.head * width;
        (0..queries)
            .map(|query| {
                dot(
                    &self.left.grad[at(query)..][..width],
                    &self.left.out[at(query)..][..width],
                )
            })
            .collect()
    }
}

/// Adds rows that lie behind each other to rows that start `stride` numbers apart.
fn add_rows(to: &mut [f32], stride: usize, from: &[f32], width: usize) {
    for (to, from) in to.chunks_mut(stride).zip(from.chunks(width)) {
        add(&mut to[..width], from);
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
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0f32; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
            }
        }
        a_rest.iter().zip(b_rest).fold(sum(lanes), |sum, (a, b)| a.mul_add(*b, sum))
    }
}

wide! {
    /// Scores to weights p = e^(s - lse), and the gradients of the weights to those of the scores, p (dp - drift).
    fn softmax_back(weights: &mut [f32], slopes: &mut [f32], log_sum: f32, drift: f32) {
        for (weight, slope) in weights.iter_mut().zip(slopes) {
            *weight = exp(*weight - log_sum);
            *slope = *weight * (*slope - drift);
        }
    }
}
