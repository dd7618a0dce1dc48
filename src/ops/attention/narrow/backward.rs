//! Backward pass of attention in bf16.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::packed::{Operand, fill, packed};
use super::soften::{self, Queries, soften_back};
use super::{Scores, head, write};
use crate::ops::attention::backward::{Gradients, NeededGradients, PIECE, PIECES, SavedForward};
use crate::ops::attention::heads::rows_by_head;
use crate::ops::attention::{Mask, Sizes};
use crate::ops::bf16::Isa;
use crate::ops::bf16::block::Registers;
use crate::ops::bf16::left::Left;
use crate::ops::bf16::line::{Line, SIDE, Sums, exact};
use crate::ops::bf16::pack::Rows;
use crate::ops::map::Zeros;
use crate::ops::simd_math::{LANES, sum, wide};
use crate::process::allocations;

/// Blocks of queries and of keys at a time.
const QUERIES: usize = 4;
const KEYS: usize = 4;

/// Returns the needed gradients.
pub fn backward(
    isa: Isa,
    sizes: &Sizes,
    mask: Option<&Mask>,
    given: SavedForward<bf16>,
    wanted: NeededGradients,
) -> Gradients<bf16> {
    let place = |wanted: bool, tokens| wanted.then(|| bf16::zeros(sizes.batch * tokens * sizes.row()));
    let mut all = Gradients {
        q: place(wanted.q, sizes.queries),
        k: place(wanted.k, sizes.keys),
        v: place(wanted.v, sizes.keys),
    };
    let parts = sizes.batch * sizes.heads;
    let of_rows = parts * (sizes.queries + 2 * sizes.keys) * size_of::<&[bf16]>();
    allocations::elsewhere(of_rows, of_head(sizes), parts);
    if allocations::is_recording() {
        return all;
    }
    let q = rows_by_head(sizes, sizes.queries, all.q.as_deref_mut());
    let k = rows_by_head(sizes, sizes.keys, all.k.as_deref_mut());
    let v = rows_by_head(sizes, sizes.keys, all.v.as_deref_mut());
    let heads = q.into_par_iter().zip(k).zip(v).enumerate();
    heads.for_each(|(index, ((q, k), v))| Work::new(isa, Scores { sizes, mask, index }, &given, wanted).run(q, k, v));
    all
}

/// Bytes that a head takes while it is processed. Not in whole blocks of queries: what is recorded of few is to stand for many.
fn of_head(sizes: &Sizes) -> usize {
    let (queries, features) = (sizes.queries, sizes.width.div_ceil(SIDE));
    let (step, block) = (SIDE * size_of::<Line>(), size_of::<Sums>());
    let shared = queries * (4 * features * size_of::<Line>() + 2 * size_of::<f32>());
    let keys = KEYS * (3 * features * step + (2 * features + 1) * block);
    let piece = queries * features * block / SIDE + keys + 3 * QUERIES * KEYS * step;
    shared + pieces(sizes) * piece
}

/// Returns the number of pieces of a head's keys.
fn pieces(sizes: &Sizes) -> usize {
    sizes.keys.div_ceil(PIECE).min(PIECES)
}

/// One head: its queries and the gradient of its output, packed.
struct Work<'a> {
    isa: Isa,
    scores: Scores<'a>,
    wanted: NeededGradients,
    keys: Rows<'a>,
    values: Rows<'a>,
    /// Right operands of products over features, then of products over queries.
    q: [Vec<Line>; 2],
    grad: [Vec<Line>; 2],
    /// Infinite beyond the last query.
    log_sums: Vec<[f32; SIDE]>,
    /// sum(do o) of each query
    drifts: Vec<[f32; SIDE]>,
    /// Blocks.
    queries: usize,
    features: usize,
}

/// Some keys of a head, with the buffers a thread needs to process them.
struct Piece {
    first: usize,
    /// Blocks.
    len: usize,
    /// Transposed, a block for every 32 queries and 32 features.
    dq: Vec<Sums>,
    keys: Vec<Line>,
    values: Vec<Line>,
    /// The keys as left operand of a product over keys.
    columns: Vec<Line>,
    dk: Vec<Sums>,
    dv: Vec<Sums>,
    masks: Vec<Sums>,
    weights: Vec<Line>,
    slopes: Vec<Line>,
    pairs: Vec<Line>,
}

impl<'a> Work<'a> {
    fn new(isa: Isa, scores: Scores<'a>, given: &SavedForward<'a, bf16>, wanted: NeededGradients) -> Self {
        let (sizes, index) = (scores.sizes, scores.index);
        let [q, out, grad] = [given.q, given.out, given.grad].map(|x| head(sizes, index, sizes.queries, x));
        let both = |rows: &Rows| [packed(rows, Operand::Right), packed(rows, Operand::RightOverTokens)];
        let queries = sizes.queries.div_ceil(SIDE);
        let mut log_sums = vec![[f32::INFINITY; SIDE]; queries];
        let mut drifts = vec![[0.0; SIDE]; queries];
        log_sums.as_flattened_mut()[..sizes.queries]
            .copy_from_slice(&given.log_sums[index * sizes.queries..][..sizes.queries]);
        for (query, drift) in drifts.as_flattened_mut()[..sizes.queries].iter_mut().enumerate() {
            *drift = dot(grad.row(query), out.row(query));
        }
        Self {
            isa,
            scores,
            wanted,
            keys: head(sizes, index, sizes.keys, given.k),
            values: head(sizes, index, sizes.keys, given.v),
            q: both(&q),
            grad: both(&grad),
            log_sums,
            drifts,
            queries,
            features: sizes.width.div_ceil(SIDE),
        }
    }

    /// Fills the head's gradients.
    fn run(&self, mut q: Vec<&mut [bf16]>, mut k: Vec<&mut [bf16]>, mut v: Vec<&mut [bf16]>) {
        let blocks = self.scores.sizes.keys.div_ceil(SIDE);
        let piece = blocks.div_ceil(pieces(self.scores.sizes)).next_multiple_of(KEYS);
        let mut places: Vec<Piece> = (0..blocks)
            .step_by(piece)
            .map(|first| Piece::new(self, first, piece.min(blocks - first)))
            .collect();
        let (mut k, mut v) = (k.chunks_mut(piece * SIDE), v.chunks_mut(piece * SIDE));
        let parts: Vec<_> = places.iter_mut().map(|place| (place, k.next(), v.next())).collect();
        parts.into_par_iter().for_each(|(place, k, v)| {
            self.piece(place, k.unwrap_or_default(), v.unwrap_or_default());
        });
        // In the order of the pieces, whichever finished first.
        let (first, others) = places.split_first_mut().expect("there is a key");
        for (block, places) in q.chunks_mut(SIDE).enumerate() {
            let sums = &mut first.dq[block * self.features..][..self.features];
            for other in &*others {
                for (sum, other) in sums.iter_mut().zip(&other.dq[block * self.features..]) {
                    add(sum.0.as_flattened_mut(), other.0.as_flattened());
                }
            }
            let sums: Vec<Sums> = sums.iter().map(Sums::t).collect();
            for (i, place) in places.iter_mut().enumerate() {
                write(place, &sums, i, self.scores.sizes.scale());
            }
        }
    }

    /// Processes some keys under all queries.
    fn piece(&self, piece: &mut Piece, k: &mut [&mut [bf16]], v: &mut [&mut [bf16]]) {
        let registers = Registers::new(self.isa);
        for from in (0..piece.len).step_by(KEYS) {
            let count = KEYS.min(piece.len - from);
            piece.load(self, piece.first + from, count);
            for first in (0..self.queries).step_by(QUERIES) {
                let queries = first..(first + QUERIES).min(self.queries);
                self.tile(&registers, piece, queries, piece.first + from, count);
            }
            let keys = from * SIDE..(from + count) * SIDE;
            self.store(&piece.dk, k, keys.clone(), self.scores.sizes.scale());
            self.store(&piece.dv, v, keys, 1.0);
        }
    }

    /// Writes the gradients of some keys or values, if they are wanted.
    fn store(&self, sums: &[Sums], places: &mut [&mut [bf16]], keys: Range<usize>, factor: f32) {
        for (i, place) in places.iter_mut().skip(keys.start).take(keys.len()).enumerate() {
            write(
                place,
                &sums[i / SIDE * self.features..][..self.features],
                i % SIDE,
                factor,
            );
        }
    }

    /// Processes some keys under some queries: recomputes the weights p, then the gradients ds of the scores and what follows
    /// from both.
    fn tile(&self, registers: &Registers, piece: &mut Piece, queries: Range<usize>, first: usize, count: usize) {
        let (features, wide) = (self.features, queries.len());
        let (mut scores, mut slopes) = (Sums::ZERO, Sums::ZERO);
        for key in 0..count {
            for (j, query) in queries.clone().enumerate() {
                let at = key * features * SIDE;
                let over_features = |left: &[Line], right: &[Line], to: &mut Sums| {
                    let left = left[at..][..features * SIDE].as_ptr();
                    let right = right[query * features * SIDE..][..features * SIDE].as_ptr();
                    // SAFETY: both hold a step for every 32 features.
                    unsafe { registers.block(features, Left::packed(left), right, to, false) };
                };
                over_features(&piece.keys, &self.q[0], &mut scores);
                over_features(&piece.values, &self.grad[0], &mut slopes);
                self.mask(piece, query, first + key, key, &mut scores);
                let to = soften::Gradients {
                    weights: &mut piece.weights[(key * wide + j) * SIDE..][..SIDE],
                    slopes: &mut piece.slopes[(key * wide + j) * SIDE..][..SIDE],
                    pairs: &mut piece.pairs[(j * count + key) * SIDE..][..SIDE],
                };
                let block = Queries {
                    log_sums: &self.log_sums[query],
                    drifts: &self.drifts[query],
                };
                soften_back(self.isa, &scores, &slopes, self.scores.factor(), block, to);
            }
            for feature in 0..features {
                let over_queries = |left: &[Line], right: &[Line], to: &mut Sums| {
                    let left = left[key * wide * SIDE..][..wide * SIDE].as_ptr();
                    let right = right[(feature * self.queries + queries.start) * SIDE..][..wide * SIDE].as_ptr();
                    // SAFETY: both hold a step for every block of queries.
                    unsafe { registers.block(wide, Left::packed(left), right, to, true) };
                };
                if self.wanted.v {
                    over_queries(&piece.weights, &self.grad[1], &mut piece.dv[key * features + feature]);
                }
                if self.wanted.k {
                    over_queries(&piece.slopes, &self.q[1], &mut piece.dk[key * features + feature]);
                }
            }
        }
        if self.wanted.q {
            for (j, query) in queries.enumerate() {
                for feature in 0..features {
                    let left = piece.columns[feature * count * SIDE..][..count * SIDE].as_ptr();
                    let right = piece.pairs[j * count * SIDE..][..count * SIDE].as_ptr();
                    let to = &mut piece.dq[query * features + feature];
                    // SAFETY: both hold a step for every block of keys.
                    unsafe { registers.block(count, Left::packed(left), right, to, true) };
                }
            }
        }
    }

    /// Masks the scores of a block of keys, the `place`th of the tile, and queries.
    fn mask(&self, piece: &mut Piece, query: usize, key: usize, place: usize, scores: &mut Sums) {
        let mut mask = piece.masks.get_mut(place);
        if let Some(mask) = &mut mask
            && (query == 0 || !self.scores.is_common())
        {
            let first = query * SIDE;
            // One mask for all queries is read with the first of them, for whole blocks.
            let last = match self.scores.is_common() {
                true => first + SIDE,
                false => (first + SIDE).min(self.scores.sizes.queries),
            };
            self.scores.transposed(first..last, key * SIDE, mask);
        }
        self.scores.mask_transposed(mask.as_deref(), key * SIDE, scores);
    }
}

impl Piece {
    fn new(work: &Work, first: usize, len: usize) -> Self {
        let step = work.features * SIDE;
        let lines = |steps: usize| vec![Line::ZERO; steps * SIDE];
        let blocks = |count: usize| vec![Sums::ZERO; count];
        Self {
            first,
            len,
            dq: blocks(if work.wanted.q { work.queries * work.features } else { 0 }),
            keys: vec![Line::ZERO; KEYS * step],
            values: vec![Line::ZERO; KEYS * step],
            columns: vec![Line::ZERO; KEYS * step],
            dk: blocks(KEYS * work.features),
            dv: blocks(KEYS * work.features),
            masks: blocks(if work.scores.mask.is_some() { KEYS } else { 0 }),
            weights: lines(KEYS * QUERIES),
            slopes: lines(KEYS * QUERIES),
            pairs: lines(KEYS * QUERIES),
        }
    }

    /// Loads the next keys, `count` blocks.
    fn load(&mut self, work: &Work, first: usize, count: usize) {
        fill(&work.keys, first, count, Operand::Left, &mut self.keys);
        fill(&work.values, first, count, Operand::Left, &mut self.values);
        let columns = &mut self.columns;
        fill(&work.keys, first, count, Operand::LeftOverTokens, columns);
        self.dk.fill(Sums::ZERO);
        self.dv.fill(Sums::ZERO);
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
    fn dot(a: &[bf16], b: &[bf16]) -> f32 {
        let mut lanes = [0f32; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                lanes[lane] = exact(a[lane]).mul_add(exact(b[lane]), lanes[lane]);
            }
        }
        a_rest.iter().zip(b_rest).fold(sum(lanes), |sum, (a, b)| exact(*a).mul_add(exact(*b), sum))
    }
}
