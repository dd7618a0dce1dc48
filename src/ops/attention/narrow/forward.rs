//! Forward pass of attention in bf16.

use half::bf16;
use rayon::prelude::*;

use super::packed::{Operand, fill, packed};
use super::soften::soften;
use super::{Scores, head, write};
use crate::ops::attention::heads::rows_by_head;
use crate::ops::attention::softmax::Running;
use crate::ops::attention::{Mask, Sizes};
use crate::ops::bf16::Isa;
use crate::ops::bf16::block::Registers;
use crate::ops::bf16::left::Left;
use crate::ops::bf16::line::{Line, SIDE, Sums};
use crate::ops::bf16::pack::Rows;
use crate::ops::map::Zeros;
use crate::ops::simd_math::sum;
use crate::process::allocations;

/// Blocks of keys at a time.
const BLOCKS: usize = 8;
/// Blocks of queries that a thread takes at least.
const TASK: usize = 8;

/// Returns the output (B, S, H, K), and the binary logarithm of each query's sum of exponentials (B, H, S).
pub fn forward(isa: Isa, sizes: &Sizes, mask: Option<&Mask>, [q, k, v]: [&[bf16]; 3]) -> (Vec<bf16>, Vec<f32>) {
    let mut out = bf16::zeros(sizes.batch * sizes.queries * sizes.row());
    let mut log_sums = vec![0.0; sizes.batch * sizes.heads * sizes.queries];
    let features = sizes.width.div_ceil(SIDE);
    let scratch = BLOCKS * (size_of::<Sums>() + SIDE * size_of::<Line>())
        + features * (size_of::<Sums>() + SIDE * size_of::<Line>());
    // Not in whole blocks: what is recorded of few tokens is to stand for many.
    let of_head = 2 * sizes.keys * features * size_of::<Line>() + scratch;
    let of_rows = sizes.batch * sizes.heads * sizes.queries * size_of::<&[bf16]>();
    allocations::elsewhere(of_rows, of_head, sizes.batch * sizes.heads);
    if allocations::is_recording() {
        return (out, log_sums);
    }
    let heads = rows_by_head(sizes, sizes.queries, Some(&mut out)).into_par_iter();
    let heads = heads.zip(log_sums.par_chunks_mut(sizes.queries)).enumerate();
    heads.for_each(|(index, (mut out, log_sums))| {
        let work = Work {
            isa,
            scores: Scores { sizes, mask, index },
            queries: head(sizes, index, sizes.queries, q),
            keys: packed(&head(sizes, index, sizes.keys, k), Operand::Right),
            values: packed(&head(sizes, index, sizes.keys, v), Operand::RightOverTokens),
        };
        let blocks = out.par_chunks_mut(SIDE).zip(log_sums.par_chunks_mut(SIDE));
        blocks.enumerate().with_min_len(TASK).for_each_init(
            || Scratch::new(isa, features),
            |scratch, (block, (out, log_sums))| work.block(block * SIDE, scratch, out, log_sums),
        );
    });
    (out, log_sums)
}

/// Buffers of one thread, and its registers: nothing between their making and their end uses rayon.
struct Scratch {
    registers: Registers,
    q: Vec<Line>,
    scores: Vec<Sums>,
    weights: Vec<Line>,
    /// A block for every 32 features.
    out: Vec<Sums>,
}

impl Scratch {
    fn new(isa: Isa, features: usize) -> Self {
        Self {
            registers: Registers::new(isa),
            q: vec![Line::ZERO; features * SIDE],
            scores: vec![Sums::ZERO; BLOCKS],
            weights: vec![Line::ZERO; BLOCKS * SIDE],
            out: vec![Sums::ZERO; features],
        }
    }
}

/// One head.
struct Work<'a> {
    isa: Isa,
    scores: Scores<'a>,
    queries: Rows<'a>,
    keys: Vec<Line>,
    values: Vec<Line>,
}

impl Work<'_> {
    /// Processes the queries from `first` on, one for each entry of `places`.
    fn block(&self, first: usize, scratch: &mut Scratch, places: &mut [&mut [bf16]], log_sums: &mut [f32]) {
        let (features, blocks) = (scratch.out.len(), self.scores.sizes.keys.div_ceil(SIDE));
        fill(&self.queries, first / SIDE, 1, Operand::Left, &mut scratch.q);
        scratch.out.fill(Sums::ZERO);
        let mut running = [Running::START; SIDE];
        for from in (0..blocks).step_by(BLOCKS) {
            let count = BLOCKS.min(blocks - from);
            let q = Left::packed(scratch.q.as_ptr());
            for (block, scores) in (from..).zip(&mut scratch.scores[..count]) {
                let keys = self.keys[block * features * SIDE..][..features * SIDE].as_ptr();
                // SAFETY: both hold a step for every 32 features.
                unsafe { scratch.registers.block(features, q, keys, scores, false) };
                self.scores.mask(first..first + places.len(), block * SIDE, scores);
            }
            let (scores, factor) = (&scratch.scores[..count], self.scores.factor());
            soften(
                self.isa,
                scores,
                factor,
                &mut running,
                &mut scratch.weights,
                &mut scratch.out,
            );
            let weights = Left::packed(scratch.weights.as_ptr());
            for (feature, out) in scratch.out.iter_mut().enumerate() {
                let values = self.values[(feature * blocks + from) * SIDE..][..count * SIDE].as_ptr();
                // SAFETY: both hold `count` steps.
                unsafe { scratch.registers.block(count, weights, values, out, true) };
            }
        }
        for (i, (place, to)) in places.iter_mut().zip(log_sums).enumerate() {
            let Running { largest, sums } = running[i];
            let sum = sum(sums);
            // A fully masked query gives zeros.
            let (factor, log_sum) = match sum {
                0.0 => (0.0, f32::INFINITY),
                _ => (1.0 / sum, largest + sum.log2()),
            };
            write(place, &scratch.out, i, factor);
            *to = log_sum;
        }
    }
}
