//! `scale_shift_table`: a block's or head's own offsets to the shifts, scales and gates that the embedding computes
//! from the timestep for all of them (adaLN-single, arXiv:2310.00426).
//!
//! Shapes: B samples, P parts of a sequence with a timestep each, D the model's width.

use candle_core::{DType, Result, Shape, Tensor};

use super::linear::{Linear, linear};
use super::norm::{Modulation, Norm, NormKind};
use super::weights::Weights;

/// Table (1, 1, K, D), in f32 whatever the other weights are.
#[derive(Debug, Clone)]
pub struct ScaleShiftTable<const K: usize>(Tensor);

impl<const K: usize> ScaleShiftTable<K> {
    /// Reads `scale_shift_table`: K rows of D, in a model-specific shape.
    pub fn new(shape: impl Into<Shape>, weights: &Weights) -> Result<Self> {
        let table = weights.to_dtype(DType::F32).get(shape, "scale_shift_table")?;
        Ok(Self(table.reshape((1, 1, K, ()))?))
    }

    /// Adds the embedding's (B, P, K or 1, D) and the table: K times (B, P, D) in f32.
    pub fn rows(&self, stem: &Tensor) -> Result<[Tensor; K]> {
        let sum = stem.to_dtype(DType::F32)?.broadcast_add(&self.0)?; // (B, P, K, D)
        let rows: Vec<Tensor> = (0..K)
            .map(|at| sum.narrow(2, at, 1)?.squeeze(2))
            .collect::<Result<_>>()?;
        Ok(rows.try_into().expect("the tensor has K rows"))
    }
}

/// Head of a transformer: a layer norm modulated by the timestep, and a linear layer.
#[derive(Debug, Clone)]
pub struct Head {
    scale_shift_table: ScaleShiftTable<2>,
    norm_out: Norm,
    proj_out: Linear,
}

impl Head {
    /// Reads `scale_shift_table`, in a model-specific shape, and `proj_out`, from D to `outputs`.
    pub fn new(table: impl Into<Shape>, outputs: usize, eps: f64, weights: &Weights) -> Result<Self> {
        let table = table.into();
        let dim = table.dims().last().copied().unwrap_or_default();
        Ok(Self {
            scale_shift_table: ScaleShiftTable::new(table, weights)?,
            norm_out: Norm::plain(NormKind::Layer, dim, eps, weights)?,
            proj_out: linear(dim, outputs, weights.pp("proj_out"))?,
        })
    }

    /// Forward pass of tokens (B, N, D), divided into `parts`, and the embedded timestep (B, P, D) -> (B, N, outputs)
    pub fn forward(&self, hidden: &Tensor, time: &Tensor, parts: &[usize]) -> Result<Tensor> {
        let [shift, scale] = self.scale_shift_table.rows(&time.unsqueeze(2)?)?; // (B, P, D)
        let norm = self.norm_out.modulated(hidden, &Modulation { shift, scale }, parts)?;
        self.proj_out.forward(&norm)
    }
}
