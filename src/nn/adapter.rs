//! Low-rank adapters of linear layers, and the source that gives a model its adapters while it loads.  arXiv:2106.09685

use candle_core::{D, Result, Shape, Tensor};

use super::dropout::Dropout;
use crate::ops::stored::StoredMatrix;

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

/// A layer that is loaded, as the source of adapters sees it.
#[derive(Debug, Clone, Copy)]
pub struct LayerId<'a> {
    /// Path of the layer in the checkpoint.
    pub path: &'a str,
    /// Shape of its weight: (out, in), or (out, channels, sides of the kernel...) of a convolution.
    pub weight: &'a [usize],
    /// Form of its weight.
    pub form: WeightForm,
}

/// Form of a layer's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightForm {
    /// Dense.
    Dense,
    /// In few bits, as the checkpoint has it.
    Stored,
    /// In few bits; the checkpoint has it dense.
    Quantized,
}

impl LayerId<'_> {
    /// Returns the number of outputs.
    pub fn out_features(&self) -> usize {
        self.weight.first().copied().unwrap_or(0)
    }

    /// Returns the number of inputs; of a convolution, the numbers under its kernel.
    pub fn in_features(&self) -> usize {
        self.weight.iter().skip(1).product()
    }

    /// Returns true for a convolution, which is computed as a linear layer of the numbers under its kernel.
    pub fn is_convolution(&self) -> bool {
        self.weight.len() > 2
    }
}

/// Source of adapters for a model's layers, queried while it loads.
pub trait Adapt: Send + Sync {
    /// Returns the adapters of a layer; none if it is not a target. A is (rank, in), B is (out, rank).
    fn adapt(&self, layer: &LayerId) -> Result<Vec<LoraLayer>>;

    /// Shows the matrix of a layer, `dense` in main memory, as it is stored in few bits: before its adapters are asked for.
    fn quantized(&self, _layer: &LayerId, _dense: &Tensor, _stored: &dyn StoredMatrix) -> Result<()> {
        Ok(())
    }

    /// Returns true if it must see the matrix of a layer as it was before it is stored: see [`quantized`](Self::quantized).
    fn needs_dense(&self, _layer: &LayerId) -> Result<bool> {
        Ok(false)
    }

    /// Returns the change to the parameter `name` of this shape as it is read, in f32 on the CPU; None for no change.
    fn delta(&self, _name: &str, _shape: &Shape) -> Result<Option<Tensor>> {
        Ok(None)
    }
}
