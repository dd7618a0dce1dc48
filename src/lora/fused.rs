//! Adapters of layers that are rows of one fused layer in the original checkpoint, joined. With `B_i A_i` on the rows i of
//! the fused layer, and R the sum of their ranks:
//!
//! ```text
//! A = [A_1; A_2; ...] (R, in)    B = diag(B_1, B_2, ...) (out, R); rows without an adapter are zeros
//! ```
//!
//! Parts that share one A, as those of a layer that was trained fused, keep it:
//!
//! ```text
//! A = A_1 = A_2 = ...    B = [B_1; B_2; ...]
//! ```
//!
//! Reading splits them again.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Tensor};

use super::adapters::{Adapter, Deltas};
use super::names::{Division, Fused, Names};
use crate::nn::fused_rows::{self, Rows};

/// Adapters and differences by original names.
#[derive(Debug)]
pub struct Joined {
    /// Adapters by the original name of the layer.
    pub layers: BTreeMap<String, Adapter>,
    /// Differences by the original name of the layer or parameter, and the end that they have in files: `diff` of a weight or
    /// of a parameter outside of layers, `diff_b` of a bias.
    pub deltas: BTreeMap<(String, &'static str), Tensor>,
}

/// Joins the adapters and differences of layers that are one in the original checkpoint.
///
/// # Errors
/// Fails for layers that the family does not have, and for sizes that make no such layer.
pub fn join(layers: &BTreeMap<String, Adapter>, deltas: &Deltas, names: &'static Names) -> anyhow::Result<Joined> {
    let mut groups: BTreeMap<(String, &'static str), Group<Tensor>> = BTreeMap::new();
    let mut joined = Joined {
        layers: BTreeMap::new(),
        deltas: BTreeMap::new(),
    };
    let mut adapters: BTreeMap<String, Group<Adapter>> = BTreeMap::new();
    for (layer, adapter) in layers {
        let name = original(names, layer)?;
        match names.fused_part(layer) {
            None => drop(joined.layers.insert(name, adapter.clone())),
            Some(part) => {
                adapters.entry(name).or_insert_with(|| Group::of(part.fused)).parts[part.index] = Some(adapter.clone())
            }
        }
    }
    for (parameter, delta) in deltas {
        let (layer, end) = match parameter.rsplit_once('.') {
            Some((layer, "weight")) => (layer, "diff"),
            Some((layer, "bias")) => (layer, "diff_b"),
            _ => (parameter.as_str(), "diff"),
        };
        let name = (original(names, layer)?, end);
        match names.fused_part(layer) {
            None => drop(joined.deltas.insert(name, delta.clone())),
            Some(part) => {
                groups.entry(name).or_insert_with(|| Group::of(part.fused)).parts[part.index] = Some(delta.clone())
            }
        }
    }
    for (name, group) in adapters {
        let last = last_outputs(group.fused, layers, names)?;
        let adapter = group.adapter(last).with_context(|| name.clone())?;
        joined.layers.insert(name, adapter);
    }
    for (name, group) in groups {
        let last = last_outputs(group.fused, layers, names)?;
        let delta = group.delta(last).with_context(|| name.0.clone())?;
        joined.deltas.insert(name, delta);
    }
    Ok(joined)
}

/// Returns a layer's original name.
fn original(names: &Names, layer: &str) -> anyhow::Result<String> {
    names.original(layer).with_context(|| {
        format!(
            "{layer}: no layer of {} is called so; it has no name in this format",
            names.title
        )
    })
}

/// Returns the outputs of the last part of such a layer, in whatever block there is an adapter on one.
fn last_outputs(
    fused: &'static Fused,
    layers: &BTreeMap<String, Adapter>,
    names: &'static Names,
) -> anyhow::Result<Option<usize>> {
    let is_last = |layer: &str| {
        names
            .fused_part(layer)
            .is_some_and(|part| part.fused == fused && part.index + 1 == fused.parts.len())
    };
    let last = layers.iter().find(|(layer, _)| is_last(layer));
    Ok(last.map(|(_, adapter)| adapter.b.dim(0)).transpose()?)
}

/// Parts of a fused layer, each with what is on it, if anything.
struct Group<T> {
    fused: &'static Fused,
    parts: Vec<Option<T>>,
}

impl<T> Group<T> {
    fn of(fused: &'static Fused) -> Self {
        let parts = fused.parts.iter().map(|_| None).collect();
        Self { fused, parts }
    }

    fn found(&self) -> impl Iterator<Item = (usize, &T)> {
        let parts = self.parts.iter().enumerate();
        parts.filter_map(|(index, part)| Some((index, part.as_ref()?)))
    }

    /// Returns the rows of every part; `outputs` are those of the parts that are there, `inputs` the layer's, `last` the
    /// rows of the last part in other blocks.
    fn heights(&self, outputs: &[(usize, usize)], inputs: usize, last: Option<usize>) -> anyhow::Result<Vec<usize>> {
        let count = self.parts.len();
        let own = |index: usize| outputs.iter().find(|(at, _)| *at == index).map(|(_, outputs)| *outputs);
        let any = outputs.first().map_or(0, |(_, outputs)| *outputs);
        let heights: Vec<usize> = match self.fused.division {
            Division::Equal | Division::HalvesSwapped => vec![any; count],
            Division::SquaresAndRest(times) => {
                let rest = own(count - 1).or(last).unwrap_or(times * inputs);
                (1..count).map(|_| inputs).chain([rest]).collect()
            }
            Division::WiderOrNarrower => {
                ensure!(
                    outputs.len() == 1,
                    "a block has one of {} alone",
                    self.fused.parts.join(" and ")
                );
                (0..count).map(|index| own(index).unwrap_or(0)).collect()
            }
        };
        for (index, outputs) in outputs {
            ensure!(
                heights[*index] == *outputs,
                "{}{} has {outputs} outputs, where the original layer has {} rows",
                self.fused.stem,
                self.fused.parts[*index],
                heights[*index]
            );
        }
        Ok(heights)
    }
}

impl Group<Adapter> {
    /// Returns the adapter of the fused layer. Scales that differ are multiplied into B.
    fn adapter(&self, last: Option<usize>) -> anyhow::Result<Adapter> {
        let mut matrices = Vec::new();
        for (index, adapter) in self.found() {
            let (a, b) = adapter.matrices()?;
            matrices.push((index, a, b, adapter.scale()));
        }
        let inputs = matrices.first().map(|(_, a, ..)| a.dim(1)).transpose()?.unwrap_or(0);
        let outputs: Vec<(usize, usize)> = matrices
            .iter()
            .map(|(at, _, b, _)| Ok((*at, b.dim(0)?)))
            .collect::<candle_core::Result<_>>()?;
        let heights = self.heights(&outputs, inputs, last)?;
        if let Some(adapter) = self.of_shared_a(&heights)? {
            return Ok(adapter);
        }
        let same = matrices.iter().all(|(.., scale)| *scale == matrices[0].3);
        let a_dtype = common(matrices.iter().map(|(_, a, ..)| a.dtype()));
        let b_dtype = match same {
            true => common(matrices.iter().map(|(_, _, b, _)| b.dtype())),
            false => DType::F32,
        };
        let rank: usize = matrices
            .iter()
            .map(|(_, a, ..)| a.dim(0))
            .sum::<candle_core::Result<_>>()?;
        let (mut all_a, mut all_b, mut before) = (Vec::new(), Vec::new(), 0);
        for (index, height) in heights.into_iter().enumerate().filter(|(_, height)| *height > 0) {
            let Some((_, a, b, scale)) = matrices.iter().find(|(at, ..)| *at == index) else {
                all_b.push(Tensor::zeros((height, rank), b_dtype, &Device::Cpu)?);
                continue;
            };
            ensure!(a.dim(1)? == inputs, "its parts have {inputs} and {} inputs", a.dim(1)?);
            let (own, b) = match same {
                true => (a.dim(0)?, b.to_dtype(b_dtype)?),
                false => (a.dim(0)?, (b.to_dtype(DType::F64)? * *scale)?.to_dtype(b_dtype)?),
            };
            let b = fused_rows::take(&b, &self.ranges(index, height)?)?;
            all_b.push(b.pad_with_zeros(1, before, rank - before - own)?);
            all_a.push(a.to_dtype(a_dtype)?);
            before += own;
        }
        Ok(Adapter {
            a: Tensor::cat(&all_a, 0)?,
            b: Tensor::cat(&all_b, 0)?,
            alpha: if same { matrices[0].3 } else { 1.0 } * rank as f64,
            use_rslora: false,
        })
    }

    /// Returns the adapter of the fused layer, if all parts are there with one A and one scale.
    fn of_shared_a(&self, heights: &[usize]) -> anyhow::Result<Option<Adapter>> {
        let found: Vec<(usize, &Adapter)> = self.found().collect();
        let [(_, first), others @ ..] = &found[..] else {
            return Ok(None);
        };
        if others.is_empty() || found.len() < self.parts.len() {
            return Ok(None);
        }
        for (_, other) in others {
            let alike =
                (first.alpha, first.use_rslora, first.b.dtype()) == (other.alpha, other.use_rslora, other.b.dtype());
            if !alike || !is_same(&first.a, &other.a)? {
                return Ok(None);
            }
        }
        let parts = found.iter().map(|(index, adapter)| {
            let (_, b) = adapter.matrices()?;
            Ok(fused_rows::take(&b, &self.ranges(*index, heights[*index])?)?)
        });
        Ok(Some(Adapter {
            a: first.matrices()?.0,
            b: Tensor::cat(&parts.collect::<anyhow::Result<Vec<_>>>()?, 0)?,
            alpha: first.alpha,
            use_rslora: first.use_rslora,
        }))
    }

    /// Returns the order that a part's rows have in the fused layer.
    fn ranges(&self, index: usize, height: usize) -> anyhow::Result<Vec<Range<usize>>> {
        order(self.fused.rows(index), height)
    }
}

impl Group<Tensor> {
    /// Returns the difference of the fused layer's weight or bias.
    fn delta(&self, last: Option<usize>) -> anyhow::Result<Tensor> {
        let Some((first, any)) = self.found().next() else {
            bail!("nothing to join");
        };
        let outputs: Vec<(usize, usize)> = self
            .found()
            .map(|(at, delta)| Ok((at, delta.dim(0)?)))
            .collect::<candle_core::Result<_>>()?;
        let inputs = match (any.dims(), self.fused.division) {
            ([_, inputs], _) => *inputs,
            ([rest], Division::SquaresAndRest(times)) if first + 1 == self.parts.len() => rest / times.max(1),
            (dims, _) => dims.first().copied().unwrap_or(0),
        };
        let heights = self.heights(&outputs, inputs, last)?;
        let dtype = common(self.found().map(|(_, delta)| delta.dtype()));
        let mut all = Vec::new();
        for (index, height) in heights.into_iter().enumerate().filter(|(_, height)| *height > 0) {
            all.push(match &self.parts[index] {
                Some(delta) => fused_rows::take(&delta.to_dtype(dtype)?, &order(self.fused.rows(index), height)?)?,
                None => {
                    let shape: Vec<usize> = [height].into_iter().chain(any.dims()[1..].iter().copied()).collect();
                    Tensor::zeros(shape, dtype, &Device::Cpu)?
                }
            });
        }
        Ok(Tensor::cat(&all, 0)?)
    }
}

/// Returns the order of a part's own rows in the fused layer: that of its rows there, as swapping twice changes nothing.
fn order(rows: Rows, height: usize) -> anyhow::Result<Vec<Range<usize>>> {
    let own = match rows {
        Rows::HalvesSwapped => rows,
        _ => Rows::All,
    };
    let ranges = own.ranges(height, None);
    ranges.with_context(|| format!("has {height} outputs, which have no halves"))
}

/// Checks for the same numbers in the same format.
fn is_same(a: &Tensor, b: &Tensor) -> candle_core::Result<bool> {
    if a.dtype() != b.dtype() || a.dims() != b.dims() {
        return Ok(false);
    }
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    Ok(values(a)? == values(b)?)
}

/// Returns the number format of all; f32 if they differ.
fn common(mut dtypes: impl Iterator<Item = DType>) -> DType {
    let first = dtypes.next().unwrap_or(DType::F32);
    match dtypes.all(|dtype| dtype == first) {
        true => first,
        false => DType::F32,
    }
}
