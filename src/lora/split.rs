//! Adapters of fused layers in a file, split into those of the layers that are its rows. With A (R, in) and B (out, R):
//!
//! ```text
//! A_i = A (R, in)    B_i = rows i of B (out_i, R)
//! ```
//!
//! Where B is block-diagonal, the parts get the columns of their own blocks alone: what [`super::fused`] joined is split into
//! what it was.

use std::ops::Range;

use anyhow::Context;
use candle_core::{DType, Tensor};

use super::names::Located;
use super::parts::Parts;
use crate::nn::fused_rows::{self, Rows};

/// Divides what a file has on an original layer among the layers that it is in diffusers; `rank` returns the rank of a
/// layer's adapter before it was joined, if the file says.
///
/// # Errors
/// Fails for sizes that cannot be divided so.
pub fn split(
    parts: Parts,
    layers: &[Located],
    rank: impl Fn(&str) -> Option<usize>,
) -> anyhow::Result<Vec<(String, Parts)>> {
    if let [Located { name, rows: Rows::All }] = layers {
        return Ok(vec![(name.clone(), parts)]);
    }
    let (outputs, inputs) = parts.sides().context("has nothing that tells its size")?;
    let ranges = layers.iter().map(|layer| {
        let ranges = layer.rows.ranges(outputs, inputs);
        ranges.with_context(|| {
            let inputs = inputs.map_or("an unknown number of".into(), |inputs| inputs.to_string());
            format!(
                "has {outputs} outputs and {inputs} inputs, which cannot be divided among the layers that it is here"
            )
        })
    });
    let ranges: Vec<Vec<Range<usize>>> = ranges.collect::<anyhow::Result<_>>()?;
    let here = layers.iter().zip(ranges).filter(|(_, ranges)| !ranges.is_empty());
    let (layers, ranges): (Vec<&Located>, Vec<Vec<Range<usize>>>) = here.unzip();
    let blocks = match (&parts.a, &parts.b) {
        (Some(a), Some(b)) if layers.len() > 1 && b.dims().get(1) == Some(&a.dim(0)?) => {
            let ranks = layers.iter().map(|layer| rank(&layer.name)).collect();
            blocks(&used_columns(b, &ranges)?, a.dim(0)?, ranks)
        }
        _ => None,
    };
    let mut split = Vec::new();
    for (index, (layer, ranges)) in layers.iter().zip(&ranges).enumerate() {
        let columns = blocks.as_ref().map(|blocks| &blocks[index]);
        if columns.is_some_and(Range::is_empty)
            && parts.weight.is_none()
            && parts.bias.is_none()
            && parts.b_bias.is_none()
        {
            continue; // zeros stand for a part without an adapter
        }
        split.push((layer.name.clone(), parts.cut(ranges, columns)?));
    }
    Ok(split)
}

/// Returns the first and the last column of B, exclusive, that are not zeros in each part's rows.
fn used_columns(b: &Tensor, parts: &[Vec<Range<usize>>]) -> candle_core::Result<Vec<Option<Range<usize>>>> {
    let used = |ranges: &Vec<Range<usize>>| {
        let rows = fused_rows::take(b, ranges)?.flatten_from(1)?.to_dtype(DType::F32)?;
        let largest: Vec<f32> = rows.abs()?.max(0)?.to_vec1()?;
        let first = largest.iter().position(|x| *x != 0.0);
        let last = largest.iter().rposition(|x| *x != 0.0);
        Ok(first.zip(last).map(|(first, last)| first..last + 1))
    };
    parts.iter().map(used).collect()
}

/// Returns the columns of each part's block if B, of this rank, is block-diagonal; those of a part without an adapter are
/// none. `ranks` are the parts' own, as far as the file says.
fn blocks(used: &[Option<Range<usize>>], rank: usize, ranks: Vec<Option<usize>>) -> Option<Vec<Range<usize>>> {
    let told: Vec<usize> = ranks.into_iter().map(|rank| rank.unwrap_or(0)).collect();
    let count = used.iter().flatten().count();
    if count == 0 && told.iter().sum::<usize>() != rank {
        return None; // nothing is learned yet
    }
    let share = if count > 0 && rank.is_multiple_of(count) {
        rank / count
    } else {
        0
    };
    let equal = used.iter().map(|used| if used.is_some() { share } else { 0 }).collect();
    // Each block ends where the next part's first column is.
    let starts: Vec<usize> = used
        .iter()
        .flatten()
        .map(|used| used.start)
        .skip(1)
        .chain([rank])
        .collect();
    let (mut ends, mut start) = (starts.into_iter(), 0);
    let by_columns = used.iter().map(|used| match used {
        None => 0,
        Some(_) => {
            let end = ends.next().unwrap_or(rank);
            end.saturating_sub(std::mem::replace(&mut start, end))
        }
    });
    let by_columns = by_columns.collect();
    [told, equal, by_columns].into_iter().find_map(|widths| {
        let mut end = 0;
        let blocks = widths.into_iter().map(|width| {
            end += width;
            end - width..end
        });
        let blocks: Vec<Range<usize>> = blocks.collect();
        let inside = blocks.iter().zip(used).all(|(block, used)| {
            used.as_ref()
                .is_none_or(|used| block.start <= used.start && used.end <= block.end)
        });
        (end == rank && inside).then_some(blocks)
    })
}
