//! Attention in bf16 on the CPU: scores, weights and gradients by blocks of 32 x 32 ([`crate::ops::bf16`]), the softmax and all
//! sums in f32.
//!
//! Weights and the gradients of scores are rounded to bf16 for the products that follow, as flash attention does on GPUs
//! (arXiv:2205.14135). The way back has keys as rows of its blocks: weights and gradients come out of the softmax as they
//! are read by the sums over queries, and the gradients of queries are summed up as their transpose.

pub(super) mod backward;
pub(super) mod forward;
mod packed;
mod soften;

use std::ops::Range;

use half::bf16;

use super::{Mask, Sizes};
use crate::ops::bf16::line::{SIDE, Sums, nearest};
use crate::ops::bf16::pack::Rows;
use crate::ops::simd_math::wide;

/// Selects the rows of the `index`th head, counted through all samples, of a matrix of `tokens` tokens per sample.
fn head<'a>(sizes: &Sizes, index: usize, tokens: usize, numbers: &'a [bf16]) -> Rows<'a> {
    let (sample, head) = (index / sizes.heads, index % sizes.heads);
    let first = sample * tokens * sizes.row() + head * sizes.width;
    Rows::strided(&numbers[first..], tokens, sizes.width, sizes.row())
}

wide! {
    /// Writes a token's features: a row of each block times a factor, rounded.
    fn write(place: &mut [bf16], blocks: &[Sums], row: usize, factor: f32) {
        let (whole, rest) = place.as_chunks_mut::<SIDE>();
        for (place, block) in whole.iter_mut().zip(blocks) {
            for (to, number) in place.iter_mut().zip(&block.0[row]) {
                *to = nearest(number * factor);
            }
        }
        if let Some(block) = blocks.get(whole.len()) {
            for (to, number) in rest.iter_mut().zip(&block.0[row]) {
                *to = nearest(number * factor);
            }
        }
    }
}

/// Scores of a query against so many keys.
#[derive(Debug, Clone, Copy)]
struct Scores<'a> {
    sizes: &'a Sizes,
    mask: Option<&'a Mask>,
    /// Head, counted through all samples.
    index: usize,
}

impl Scores<'_> {
    /// Returns the factor that remains: without a mask products are scaled with the exponential.
    fn factor(&self) -> f32 {
        if self.mask.is_some() {
            1.0
        } else {
            self.sizes.exp2_scale()
        }
    }

    /// Masks products of queries and keys, and hides what is beyond the last key.
    fn mask(&self, queries: Range<usize>, first: usize, products: &mut Sums) {
        let keys = SIDE.min(self.sizes.keys - first);
        if let Some(mask) = self.mask {
            for (row, query) in products.0.iter_mut().zip(queries) {
                let mask = &mask.row(self.sizes, self.index, query, first)[..keys];
                masked(row, self.sizes.exp2_scale(), mask);
            }
        }
        if keys < SIDE {
            products
                .0
                .iter_mut()
                .for_each(|row| row[keys..].fill(f32::NEG_INFINITY));
        }
    }

    /// Does the same for products of keys and queries, by the mask that [`Self::transposed`] has read.
    fn mask_transposed(&self, mask: Option<&Sums>, first: usize, products: &mut Sums) {
        let keys = SIDE.min(self.sizes.keys - first);
        if let Some(mask) = mask {
            for (row, mask) in products.0.iter_mut().zip(&mask.0).take(keys) {
                masked(row, self.sizes.exp2_scale(), mask);
            }
        }
        products.0[keys..]
            .iter_mut()
            .for_each(|row| row.fill(f32::NEG_INFINITY));
    }

    /// Reads the mask of a block of keys and queries; 0 beyond the last query.
    fn transposed(&self, queries: Range<usize>, first: usize, to: &mut Sums) {
        let keys = SIDE.min(self.sizes.keys - first);
        if let Some(mask) = self.mask {
            for (i, query) in queries.enumerate() {
                let mask = mask.row(self.sizes, self.index, query, first);
                to.0.iter_mut().zip(&mask[..keys]).for_each(|(to, mask)| to[i] = *mask);
            }
        }
    }

    /// True if all queries have the same mask.
    fn is_common(&self) -> bool {
        self.mask.is_none_or(|mask| mask.strides[2] == 0)
    }
}

wide! {
    fn masked(products: &mut [f32], factor: f32, mask: &[f32]) {
        for (product, mask) in products.iter_mut().zip(mask) {
            *product = product.mul_add(factor, *mask);
        }
    }
}
