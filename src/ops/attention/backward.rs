//! Backward pass of attention on the CPU, tile by tile.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::super::aligned::Aligned;
use super::super::microkernel::{COLUMNS, Extent, Lhs, Output, Rhs, multiply};
use super::super::simd::Isa;
use super::super::simd_math::{LANES, sum, wide};
use super::heads::{Head, Panels, rows_by_head};
use super::softmax::{Tile, soften_back};
use super::{Mask, Sizes};
use crate::process::allocations;

/// Queries and keys of a tile.
const QUERIES: usize = 96;
const KEYS: usize = 128;
/// Distance between rows of weights: no power of two, as for [`Sizes::step`].
const WEIGHTS: usize = KEYS + COLUMNS;

/// Keys per thread: a head's keys are cut into pieces of about this many, at most `PIECES`, because each piece needs
/// its own buffer for the gradients of the queries.
pub(super) const PIECE: usize = 2048;
pub(super) const PIECES: usize = 4;

/// Gradients of queries (B, S, H, K), keys and values (B, L, H, K).
pub struct Gradients<T = f32> {
    pub q: Option<Vec<T>>,
    pub k: Option<Vec<T>>,
    pub v: Option<Vec<T>>,
}

impl<T> Gradients<T> {
    /// Makes tensors of them, like q, k and v.
    pub fn tensors(
        self,
        [q, k, v]: [&Tensor; 3],
        make: impl Fn(Vec<T>, &Tensor) -> Result<Tensor>,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let tensor = |numbers: Option<Vec<T>>, like| numbers.map(|numbers| make(numbers, like)).transpose();
        Ok((tensor(self.q, q)?, tensor(self.k, k)?, tensor(self.v, v)?))
    }
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
pub struct SavedForward<'a, T = f32> {
    pub q: &'a [T],
    pub k: &'a [T],
    pub v: &'a [T],
    pub out: &'a [T],
    pub grad: &'a [T],
    /// (B, H, S)
    pub log_sums: &'a [f32],
}

impl<'a, T> SavedForward<'a, T> {
    /// Puts q, k, v, the output and its gradient together.
    pub fn new([q, k, v, out, grad]: [&'a [T]; 5], log_sums: &'a [f32]) -> Self {
        Self {
            q,
            k,
            v,
            out,
            grad,
            log_sums,
        }
    }
}

/// Returns the needed gradients.
pub fn backward(sizes: &Sizes, mask: Option<&Mask>, given: SavedForward, wanted: NeededGradients) -> Gradients {
    let place = |wanted: bool, tokens| wanted.then(|| vec![0.0; sizes.batch * tokens * sizes.row()]);
    let mut all = Gradients {
        q: place(wanted.q, sizes.queries),
        k: place(wanted.k, sizes.keys),
        v: place(wanted.v, sizes.keys),
    };
    let scratch = KEYS * (2 * sizes.width + 3 * sizes.step()) + 2 * QUERIES * WEIGHTS;
    let of_head = (sizes.queries * (3 * sizes.step() + 1) + scratch) * size_of::<f32>();
    let of_rows = sizes.batch * sizes.heads * (sizes.queries + 2 * sizes.keys) * size_of::<&[f32]>();
    allocations::elsewhere(of_rows, of_head, sizes.batch * sizes.heads);
    if allocations::is_recording() {
        return all;
    }
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
    q: Aligned,    // (S, K padded), times the scale; rows here and below are `step` apart
    grad: Aligned, // (S, K padded)
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
        let (queries, step) = (sizes.queries, sizes.step());
        let (mut q, mut grad) = (Aligned::zeros(queries * step), Aligned::zeros(queries * step));
        Head::new(sizes, index, queries, given.q).copy(0, sizes.exp2_scale(), step, &mut q);
        let (grads, out) = (
            Head::new(sizes, index, queries, given.grad),
            Head::new(sizes, index, queries, given.out),
        );
        grads.copy(0, 1.0, step, &mut grad);
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
        let step = self.sizes.step();
        for (query, to) in q.iter_mut().enumerate() {
            for place in &places {
                add(to, &place.dq[query * step..]);
            }
            scale(to, self.sizes.scale());
        }
    }

    /// Processes some keys under all queries.
    fn piece(&self, piece: &mut Piece, k: &mut [&mut [f32]], v: &mut [&mut [f32]]) {
        let (queries, step) = (self.sizes.queries, self.sizes.step());
        for from in (0..piece.len).step_by(KEYS) {
            let len = KEYS.min(piece.len - from);
            piece.load(self, piece.first + from, len);
            for first in (0..queries).step_by(QUERIES) {
                self.tile(piece, first, piece.first + from, len);
            }
            // The queries carry the scale and log2 e: divide by log2 e here.
            let places = k.iter_mut().skip(from).zip(piece.dk.chunks_exact_mut(step));
            places.for_each(|(to, from)| copy(to, from, std::f32::consts::LN_2));
            let places = v.iter_mut().skip(from).zip(piece.dv.chunks_exact_mut(step));
            places.for_each(|(to, from)| copy(to, from, 1.0));
        }
    }

    /// Processes one tile: recomputes the weights p, then the gradients ds of the scores and what follows from both.
    fn tile(&self, piece: &mut Piece, first: usize, key: usize, len: usize) {
        let (padded, step) = (self.sizes.padded(), self.sizes.step());
        let count = QUERIES.min(self.sizes.queries - first);
        let rows = first * step..(first + count) * step;
        let (q, grad) = (&self.q[rows.clone()], &self.grad[rows.clone()]);
        let (weights, slopes) = (
            &mut piece.weights[..count * WEIGHTS],
            &mut piece.slopes[..count * WEIGHTS],
        );
        piece.keys.products(self.isa, q, 0, len, weights, WEIGHTS);
        if let Some(mask) = self.mask {
            for (i, weights) in weights.chunks_exact_mut(WEIGHTS).enumerate() {
                add(&mut weights[..len], mask.row(self.sizes, self.index, first + i, key));
            }
        }
        if self.wanted.q || self.wanted.k {
            piece.values.products(self.isa, grad, 0, len, slopes, WEIGHTS);
        }
        let queries = first..first + count;
        let tile = |numbers| Tile {
            numbers,
            step: WEIGHTS,
            len: len.next_multiple_of(COLUMNS),
        };
        soften_back(
            self.isa,
            tile(&mut *weights),
            tile(&mut *slopes),
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
            col: WEIGHTS,
        };
        let right = |numbers| Rhs { numbers, step };
        let sum = |numbers| Output {
            numbers,
            step,
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
                row: WEIGHTS,
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
    dq: Aligned, // (S, K padded)
    // Per tile:
    keys: Panels,
    values: Panels,
    rows: Aligned,    // the keys once more, (KEYS, K padded)
    dk: Aligned,      // (KEYS, K padded)
    dv: Aligned,      // (KEYS, K padded)
    weights: Aligned, // (QUERIES, KEYS), `WEIGHTS` apart
    slopes: Aligned,  // (QUERIES, KEYS), `WEIGHTS` apart
}

impl Piece {
    fn new(sizes: &Sizes, first: usize, len: usize, wanted: NeededGradients) -> Self {
        let step = sizes.step();
        Self {
            first,
            len,
            dq: Aligned::zeros(if wanted.q { sizes.queries * step } else { 0 }),
            keys: Panels::new(sizes, KEYS),
            values: Panels::new(sizes, KEYS),
            rows: Aligned::zeros(KEYS * step),
            dk: Aligned::zeros(KEYS * step),
            dv: Aligned::zeros(KEYS * step),
            weights: Aligned::zeros(QUERIES * WEIGHTS),
            slopes: Aligned::zeros(QUERIES * WEIGHTS),
        }
    }

    /// Loads the next keys.
    fn load(&mut self, work: &Work, first: usize, len: usize) {
        let step = work.sizes.step();
        self.keys.fill(&work.keys, first, len);
        self.values.fill(&work.values, first, len);
        work.keys.copy(first, 1.0, step, &mut self.rows[..len * step]);
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
