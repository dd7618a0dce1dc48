//! Taylor series of a tensor over steps, from those in which it was computed.
//!
//! f_0 is the last one, and f_(i+1) = (f_i - the f_i of the one before) / (steps between them), up to an order. d steps later it is
//! sum of f_i d^i / i!. The f are kept in bf16.

use candle_core::{DType, Result, Tensor};

/// A series.
#[derive(Debug, Clone)]
pub(super) struct Series {
    /// Step of f_0.
    last: usize,
    /// f_0, f_1, ...
    factors: Vec<Tensor>,
    dtype: DType,
}

impl Series {
    /// Series from the tensor of a step, and what there was before.
    pub(super) fn next(before: Option<&Self>, step: usize, tensor: &Tensor, order: usize) -> Result<Self> {
        let mut factors = vec![tensor.clone()];
        if let Some(Self { last, factors: old, .. }) = before {
            for old in old.iter().take(order) {
                let newest = &factors[factors.len() - 1];
                let difference = (newest - old.to_dtype(tensor.dtype())?)?;
                factors.push((difference / (step - last) as f64)?);
            }
        }
        let kept = factors.iter().map(|factor| factor.to_dtype(DType::BF16));
        Ok(Self {
            last: step,
            factors: kept.collect::<Result<_>>()?,
            dtype: tensor.dtype(),
        })
    }

    /// Returns the tensor of a later step.
    pub(super) fn at(&self, step: usize) -> Result<Tensor> {
        let distance = (step - self.last) as f64;
        let mut coefficient = 1.0;
        let mut sum = self.factors[0].to_dtype(self.dtype)?;
        for (power, factor) in self.factors.iter().enumerate().skip(1) {
            coefficient *= distance / power as f64;
            sum = (sum + (factor.to_dtype(self.dtype)? * coefficient)?)?;
        }
        Ok(sum)
    }
}
