//! Low-rank adapters of linear layers, and the source that gives a model its adapters while it loads.  arXiv:2106.09685

use candle_core::{D, Result, Shape, Tensor};

use super::dropout::Dropout;
use super::shards::Residency;

/// Adapter of a linear layer.
#[derive(Debug, Clone)]
pub struct LoraLayer {
    /// Matrix A (rank, in).
    pub a: Tensor,
    /// Matrix B (out, rank).
    pub b: Tensor,
    /// Factor of B A x.
    pub scale: f64,
    /// Dropout of an adapter in training.
    pub dropout: Option<Dropout>,
}

impl LoraLayer {
    /// Forward pass (..., in) -> (..., out). Adapters are f32, whatever the frozen weights are.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let in_features = x.dim(D::Minus1)?;
        let mut rows = x
            .reshape((x.elem_count() / in_features.max(1), in_features))?
            .to_dtype(self.a.dtype())?;
        if let Some(dropout) = &self.dropout {
            rows = dropout.forward(&rows)?;
        }
        let low = rows.matmul(&self.a.t()?)?; // (rows, rank)
        let y = (low.matmul(&self.b.t()?)? * self.scale)?; // (rows, out)
        let dims = [&x.dims()[..x.rank() - 1], &[y.dim(1)?]].concat();
        y.reshape(dims)?.to_dtype(x.dtype())
    }
}

/// Settings of a model in training, applied while it loads: adapters for its linear layers, by the layer's path in the
/// checkpoint, and the storage of its frozen weights.
pub trait Adapt: Send + Sync {
    /// Returns adapters for the layer `path` that maps `in_features` to `out_features`; none if it is not a target.
    fn adapt(&self, path: &str, in_features: usize, out_features: usize) -> Result<Vec<LoraLayer>>;

    /// Returns the change to the parameter `name` of this shape as it is read, in f32 on the CPU; None for no change.
    fn delta(&self, _name: &str, _shape: &Shape) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Returns the storage of the blocks' frozen matrices.
    fn residency(&self) -> Residency {
        Residency::Whole
    }
}
