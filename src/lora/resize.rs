//! Rank reduction of adapters: the best approximation of `B A` of a smaller rank (Eckart and Young 1936).
//!
//! `B A = U diag(s) Vᵀ`; the new B is `U sqrt(s)`, the new A `sqrt(s) Vᵀ`, both truncated after the largest values.

use std::collections::BTreeMap;

use anyhow::ensure;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::adapters::Adapter;
use super::svd::{self, Svd};

/// Truncated adapters, with the resulting error.
#[derive(Debug)]
pub struct Resized {
    /// Adapters of the new rank, by the layer's path.
    pub layers: BTreeMap<String, Adapter>,
    /// Relative error of each layer: lost part of the product's Frobenius norm, 0 to 1.
    pub errors: BTreeMap<String, f64>,
    /// Relative error of all layers together.
    pub error: f64,
}

/// Truncates all adapters to `rank`; smaller ones are unchanged. Scales and number formats are kept.
///
/// # Errors
/// Fails for rank 0, if no adapter has a larger rank, and for non-finite numbers.
pub fn resize(layers: &BTreeMap<String, Adapter>, rank: usize) -> anyhow::Result<Resized> {
    ensure!(rank > 0, "the rank must be at least 1");
    let widest = layers.values().map(Adapter::rank).max().unwrap_or(0);
    ensure!(
        rank < widest,
        "the adapters have rank {widest} already, which is not above {rank}"
    );
    let cut: Vec<(&String, Cut)> = layers
        .par_iter()
        .map(|(layer, adapter)| Ok((layer, one(adapter, rank).map_err(|error| error.context(layer.clone()))?)))
        .collect::<anyhow::Result<_>>()?;
    let sum = |part: fn(&Cut) -> f64| cut.iter().map(|(_, cut)| part(cut)).sum::<f64>();
    let error = share(sum(|cut| cut.lost), sum(|cut| cut.all));
    let errors = cut
        .iter()
        .map(|(layer, cut)| ((*layer).clone(), share(cut.lost, cut.all)))
        .collect();
    Ok(Resized {
        errors,
        error,
        layers: cut
            .into_iter()
            .map(|(layer, cut)| (layer.clone(), cut.adapter))
            .collect(),
    })
}

/// One truncated layer, with squared norms, including the scale.
struct Cut {
    adapter: Adapter,
    lost: f64,
    all: f64,
}

fn share(lost: f64, all: f64) -> f64 {
    if all > 0.0 { (lost / all).sqrt() } else { 0.0 }
}

fn one(adapter: &Adapter, rank: usize) -> anyhow::Result<Cut> {
    let (a, b) = adapter.matrices()?;
    let (a, b) = (rows(&a)?, rows(&b.t()?)?);
    let finite = a.iter().chain(&b).flatten().all(|x| x.is_finite());
    ensure!(finite, "holds a number that is not finite");
    let Svd { u, s, v } = svd::of_product(&b, &a);
    let squares = |s: &[f64]| s.iter().map(|s| s * s).sum::<f64>() * adapter.scale().powi(2);
    let all = squares(&s);
    if rank >= adapter.rank() {
        let adapter = adapter.clone();
        return Ok(Cut {
            adapter,
            lost: 0.0,
            all,
        });
    }
    let shaped = |tensor: Tensor, like: &Tensor, side: usize| -> candle_core::Result<Tensor> {
        let mut dims = like.dims().to_vec(); // a convolution keeps its axes
        dims[side] = rank;
        tensor.reshape(dims)?.to_dtype(like.dtype())
    };
    let scaled = |columns: &[Vec<f64>]| -> candle_core::Result<Tensor> {
        let width = columns[0].len();
        let values = columns.iter().zip(&s).take(rank);
        let values: Vec<f64> = values
            .flat_map(|(column, s)| column.iter().map(|x| x * s.sqrt()))
            .collect();
        Tensor::from_vec(values, (rank, width), &Device::Cpu)
    };
    Ok(Cut {
        adapter: Adapter {
            a: shaped(scaled(&v)?, &adapter.a, 0)?,
            b: shaped(scaled(&u)?.t()?.contiguous()?, &adapter.b, 1)?,
            alpha: adapter.scale() * rank as f64,
            use_rslora: false,
        },
        lost: squares(&s[rank..]),
        all,
    })
}

fn rows(tensor: &Tensor) -> candle_core::Result<Vec<Vec<f64>>> {
    tensor.to_dtype(DType::F64)?.to_vec2()
}
