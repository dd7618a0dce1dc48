//! Backward pass of attention on the CPU, tile by tile.

use rayon::prelude::*;

use super::super::microkernel::{Extent, Lhs, Output, Rhs, multiply};
use super::super::simd::Isa;
use super::super::simd_math::{LANES, exp2, sum, wide};
use super::heads::{Head, Panels, rows_by_head};
use super::{Mask, Sizes};
use crate::process::allocations;

/// Queries and keys of a tile: its weights and their gradients take 48 KB each.
const QUERIES: usize = 96;
const KEYS: usize = 128;

/// Keys per thread: a head's keys are cut into pieces of about this many, at most `PIECES`, because each piece needs
/// its own buffer for the gradients of the queries.
const PIECE: usize = 2048;
const PIECES: usize = 4;

/// Gradients of queries (B, S, H, K), keys and values (B, L, H, K).
pub struct Gradients {
    pub q: Option<Vec<f32>>,
    pub k: Option<Vec<f32>>,
    pub v: Option<Vec<f32>>,
}

/// Selects the gradients to compute.
#[derive(Debug, Clone, Copy)]
pub struct NeededGradients {
    pub q: bool,
    pub k: bool,
    pub v: bool,
}

/// Values saved by the forward pass, and the gradient of its output (B, S, H, K).
#[derive(Debug, Clone, Copy)]
pub struct SavedForward<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub grad: &'a [f32],
    /// (B, H, S)
    pub log_sums: &'a [f32],
}

/// Returns the needed gradients.
pub fn backward(sizes: &Sizes, mask: Option<&Mask>, given: SavedForward, wanted: NeededGradients) -> Gradients {
    let place = |wanted: bool, tokens| wanted.then(|| vec![0.0; sizes.batch * tokens * sizes.row()]);
    let mut all = Gradients {
        q: place(wanted.q, sizes.queries),
        k: place(wanted.k, sizes.keys),
        v: place(wanted.v, sizes.keys),
    };
    let scratch = KEYS * (2 * sizes.width + 3 * sizes.padded() + 2 * QUERIES);
    let of_head = (sizes.queries * (3 * sizes.padded() + 1) + scratch) * size_of::<f32>();
    let of_rows = sizes.batch * sizes.heads * (sizes.queries + 2 * sizes.keys) * size_of::<&[f32]>();
    allocations::elsewhere(of_rows, of_head, sizes.batch * sizes.heads);
    let q = rows_by_head(sizes, sizes.queries, all.q.as_deref_mut());
    let k = rows_by_head(sizes, sizes.keys, all.k.as_deref_mut());
    let v = rows_by_head(sizes, sizes.keys, all.v.as_deref_mut());
    let heads = q.into_par_iter().zip(k).zip(v).enumerate();
    heads.for_each(|(index, ((q, k), v))| Work::new(sizes, mask, index, &given, wanted).run(q, k, v));
    all
}

/// One head: its queries and the gradient of its output, contiguous.
struct Work<'a> {
    isa: Isa,
    sizes: &'a Sizes,
    mask: Option<&'a Mask>,
    index: usize,
    wanted: NeededGradients,
    keys: Head<'a>,
    values: Head<'a>,
    q: Vec<f32>,    // (S, K padded), times the scale
    grad: Vec<f32>, // (S, K padded)
    log_sums: &'a [f32],
    drifts: Vec<f32>, // sum(do o) of each query
}

impl<'a> Work<'a> {
    fn new(
        sizes: &'a Sizes,
        mask: Option<&'a Mask>,
        index: usize,
        given: &SavedForward<'a>,
        wanted: NeededGradients,
    ) -> Self {
        let (queries, padded) = (sizes.queries, sizes.padded());
        let (mut q, mut grad) = (vec![0.0; queries * padded], vec![0.0; queries * padded]);
        Head::new(sizes, index, queries, given.q).copy(0, sizes.exp2_scale(), padded, &mut q);
        let (grads, out) = (
            Head::new(sizes, index, queries, given.grad),
            Head::new(sizes, index, queries, given.out),
        );
        grads.copy(0, 1.0, padded, &mut grad);
        Self {
            isa: Isa::detect(),
            sizes,
            mask,
            index,
            wanted,
            keys: Head::new(sizes, index, sizes.keys, given.k),
            values: Head::new(sizes, index, sizes.keys, given.v),
            q,
            grad,
            log_sums: &given.log_sums[index * queries..][..queries],
            drifts: (0..queries)
                .map(|query| dot(grads.token(query), out.token(query)))
                .collect(),
        }
    }

    /// Fills the head's gradients.
    fn run(&self, mut q: Vec<&mut [f32]>, mut k: Vec<&mut [f32]>, mut v: Vec<&mut [f32]>) {
        let keys = self.sizes.keys;
        let piece = keys.div_ceil(keys.div_ceil(PIECE).min(PIECES)).next_multiple_of(KEYS);
        let mut places: Vec<Piece> = (0..keys)
            .step_by(piece)
            .map(|first| Piece::new(self.sizes, first, piece.min(keys - first), self.wanted))
            .collect();
        let mut k = k.chunks_mut(piece);
        let mut v = v.chunks_mut(piece);
        let parts: Vec<_> = places.iter_mut().map(|place| (place, k.next(), v.next())).collect();
        parts.into_par_iter().for_each(|(place, k, v)| {
            self.piece(place, k.unwrap_or_default(), v.unwrap_or_default());
        });
        // In the order of the pieces, whichever finished first.
        let padded = self.sizes.padded();
        for (query, to) in q.iter_mut().enumerate() {
            for place in &places {
                add(to, &place.dq[query * padded..]);
            }
            scale(to, self.sizes.scale());
        }
    }

    /// Processes some keys under all queries.
    fn piece(&self, piece: &mut Piece, k: &mut [&mut [f32]], v: &mut [&mut [f32]]) {
        let (queries, padded) = (self.sizes.queries, self.sizes.padded());
        for from in (0..piece.len).step_by(KEYS) {
            let len = KEYS.min(piece.len - from);
            piece.load(self, piece.first + from, len);
            for first in (0..queries).step_by(QUERIES) {
                self.tile(piece, first, piece.first + from, len);
            }
            // The queries carry the scale and log2 e: divide by log2 e here.
            let places = k.iter_mut().skip(from).zip(piece.dk.chunks_exact_mut(padded));
            places.for_each(|(to, from)| copy(to, from, std::f32::consts::LN_2));
            let places = v.iter_mut().skip(from).zip(piece.dv.chunks_exact_mut(padded));
            places.for_each(|(to, from)| copy(to, from, 1.0));
        }
    }

    /// Processes one tile: recomputes the weights p, then the gradients ds of the scores and what follows from both.
    fn tile(&self, piece: &mut Piece, first: usize, key: usize, len: usize) {
        let padded = self.sizes.padded();
        let count = QUERIES.min(self.sizes.queries - first);
        let rows = first * padded..(first + count) * padded;
        let (q, grad) = (&self.q[rows.clone()], &self.grad[rows.clone()]);
        let (weights, slopes) = (&mut piece.weights[..count * KEYS], &mut piece.slopes[..count * KEYS]);
        piece.keys.products(self.isa, q, 0, len, weights, KEYS);
        if let Some(mask) = self.mask {
            for (i, weights) in weights.chunks_exact_mut(KEYS).enumerate() {
                add(&mut weights[..len], mask.row(self.sizes, self.index, first + i, key));
            }
        }
        if self.wanted.q || self.wanted.k {
            piece.values.products(self.isa, grad, 0, len, slopes, KEYS);
        }
        let queries = first..first + count;
        softmax_back(
            weights,
            slopes,
            len,
            &self.log_sums[queries.clone()],
            &self.drifts[queries],
        );

        let over_queries = Extent {
            rows: len,
            cols: padded,
            depth: count,
        };
        let transposed = |numbers| Lhs {
            numbers,
            row: 1,
            col: KEYS,
        };
        let right = |numbers| Rhs { numbers, step: padded };
        let sum = |numbers| Output {
            numbers,
            step: padded,
            add: true,
        };
        if self.wanted.v {
            multiply(
                self.isa,
                over_queries,
                transposed(weights),
                right(grad),
                sum(&mut piece.dv),
            );
        }
        if self.wanted.k {
            multiply(self.isa, over_queries, transposed(slopes), right(q), sum(&mut piece.dk));
        }
        if self.wanted.q {
            let over_keys = Extent {
                rows: count,
                cols: padded,
                depth: len,
            };
            let slopes = Lhs {
                numbers: slopes,
                row: KEYS,
                col: 1,
            };
            multiply(
                self.isa,
                over_keys,
                slopes,
                right(&piece.rows),
                sum(&mut piece.dq[rows]),
            );
        }
    }
}

/// Some keys of a head, with the buffers a thread needs to process them tile by tile.
struct Piece {
    first: usize,
    len: usize,
    dq: Vec<f32>, // (S, K padded)
    // Per tile:
    keys: Panels,
    values: Panels,
    rows: Vec<f32>,    // the keys once more, (KEYS, K padded)
    dk: Vec<f32>,      // (KEYS, K padded)
    dv: Vec<f32>,      // (KEYS, K padded)
    weights: Vec<f32>, // (QUERIES, KEYS)
    slopes: Vec<f32>,  // (QUERIES, KEYS)
}

impl Piece {
    fn new(sizes: &Sizes, first: usize, len: usize, wanted: NeededGradients) -> Self {
        let padded = sizes.padded();
        Self {
            first,
            len,
            dq: vec![0.0; if wanted.q { sizes.queries * padded } else { 0 }],
            keys: Panels::new(sizes, KEYS),
            values: Panels::new(sizes, KEYS),
            rows: vec![0.0; KEYS * padded],
            dk: vec![0.0; KEYS * padded],
            dv: vec![0.0; KEYS * padded],
            weights: vec![0.0; QUERIES * KEYS],
            slopes: vec![0.0; QUERIES * KEYS],
        }
    }

    /// Loads the next keys.
    fn load(&mut self, work: &Work, first: usize, len: usize) {
        let padded = work.sizes.padded();
        self.keys.fill(&work.keys, first, len);
        self.values.fill(&work.values, first, len);
        work.keys.copy(first, 1.0, padded, &mut self.rows[..len * padded]);
        self.dk.fill(0.0);
        self.dv.fill(0.0);
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
    fn scale(numbers: &mut [f32], factor: f32) {
        for number in numbers {
            *number *= factor;
        }
    }
}

wide! {
    fn copy(to: &mut [f32], from: &[f32], factor: f32) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from * factor;
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
    /// Turns scores into weights p = 2^(s - lse), and the gradients of the weights into those of the scores, p (dp -
    /// drift).
    fn softmax_back(weights: &mut [f32], slopes: &mut [f32], len: usize, log_sums: &[f32], drifts: &[f32]) {
        let rows = weights.chunks_exact_mut(KEYS).zip(slopes.chunks_exact_mut(KEYS));
        for ((weights, slopes), (log_sum, drift)) in rows.zip(log_sums.iter().zip(drifts)) {
            let (weights, _) = weights[..len.next_multiple_of(LANES)].as_chunks_mut::<LANES>();
            let (slopes, _) = slopes[..len.next_multiple_of(LANES)].as_chunks_mut::<LANES>();
            for (weights, slopes) in weights.iter_mut().zip(slopes) {
                for lane in 0..LANES {
                    weights[lane] = exp2(weights[lane] - log_sum);
                    slopes[lane] = weights[lane] * (slopes[lane] - drift);
                }
            }
        }
    }
}
