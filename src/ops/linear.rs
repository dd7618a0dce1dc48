//! Linear layers whose matrix is frozen, alone and with an adapter that learns.
//!
//! ```text
//! y = x W^T + b + s (x A^T) B^T
//! dx = dy W + s (dy B) A      dA = s (dy B)^T x      dB = s dy^T (x A^T)
//! ```
//!
//! The gradient of W, which nobody wants, is never formed; candle's own product would form it. arXiv:2106.09685
//!
//! Letters: N rows (samples and tokens together), I features in, O features out, R the adapter's rank.

use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, D, Layout, Result, Shape, Tensor};

use super::product::{Matrix, Threads, product};
use super::slices::{numbers_of, stored, widened};

/// A frozen matrix (O, I) and bias (O).
#[derive(Debug, Clone)]
pub struct Frozen {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

/// An adapter: A (R, I), B (O, R) and its factor.
#[derive(Debug, Clone)]
pub struct LowRank<'a> {
    pub a: &'a Tensor,
    pub b: &'a Tensor,
    pub scale: f64,
}

impl Frozen {
    /// x (..., I) -> (..., O). Gradients reach x alone.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return self.composed(x);
        }
        x.contiguous()?.apply_op1(FrozenLinear(self.clone()))
    }

    /// x (..., I) -> (..., O). Gradients reach x, A and B.
    pub fn forward_with(&self, x: &Tensor, adapter: LowRank) -> Result<Tensor> {
        let LowRank { a, b, scale } = adapter;
        if !x.device().is_cpu() {
            let low = rows(x)?.to_dtype(a.dtype())?.matmul(&a.t()?)?; // (N, R)
            let up = (low.matmul(&b.t()?)? * scale)?; // (N, O)
            let y = self.composed(x)?;
            return &y + up.to_dtype(x.dtype())?.reshape(y.dims())?;
        }
        let op = LoraLinear {
            frozen: self.clone(),
            scale: scale as f32,
            low: Arc::default(),
        };
        x.contiguous()?.apply_op3(a, b, op)
    }

    /// The same in candle's operations, for other devices.
    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = rows(x)?.matmul(&self.weight.t()?)?; // (N, O)
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        y.reshape(self.shape(x.shape())?)
    }

    /// What x of this shape becomes.
    fn shape(&self, x: &Shape) -> Result<Shape> {
        let (out_features, in_features) = self.weight.dims2()?;
        let dims = x.dims();
        if dims.last() != Some(&in_features) {
            candle_core::bail!("a linear layer of {in_features} features was given {dims:?}");
        }
        Ok([&dims[..dims.len() - 1], &[out_features]].concat().into())
    }

    /// y = x W^T + b for x (N, I).
    fn run(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (out_features, in_features) = self.weight.dims2()?;
        let count = x.len() / in_features.max(1);
        let x = Matrix::new(x, count, in_features);
        numbers_of([&self.weight], |[weight]| {
            let weight = Matrix::new(weight, out_features, in_features);
            match &self.bias {
                None => {
                    let mut y = vec![0.0; count * out_features];
                    product(&mut y, out_features, 0.0, 1.0, x, weight.t(), Threads::All);
                    Ok(y)
                }
                Some(bias) => numbers_of([bias], |[bias]| {
                    let mut y = bias.repeat(count);
                    product(&mut y, out_features, 1.0, 1.0, x, weight.t(), Threads::All);
                    y
                }),
            }
        })?
    }

    /// dx = dy W for dy (N, O).
    fn back(&self, dy: &[f32]) -> Result<Vec<f32>> {
        let (out_features, in_features) = self.weight.dims2()?;
        let count = dy.len() / out_features.max(1);
        numbers_of([&self.weight], |[weight]| {
            let mut dx = vec![0.0; count * in_features];
            let (dy, weight) = (
                Matrix::new(dy, count, out_features),
                Matrix::new(weight, out_features, in_features),
            );
            product(&mut dx, in_features, 0.0, 1.0, dy, weight, Threads::All);
            dx
        })
    }
}

/// (..., I) -> (N, I)
fn rows(x: &Tensor) -> Result<Tensor> {
    let in_features = x.dim(D::Minus1)?;
    x.reshape((x.elem_count() / in_features.max(1), in_features))
}

struct FrozenLinear(Frozen);

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.0.shape(layout.shape())?;
        let y = self.0.run(&widened(x, layout)?)?;
        Ok((stored(y, x.dtype())?, shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = numbers_of([&grad.contiguous()?], |[dy]| self.0.back(dy))??;
        Ok(Some(like(dx, x)?))
    }
}

struct LoraLinear {
    frozen: Frozen,
    scale: f32,
    /// x A^T (N, R): left by the way forward for the way back.
    low: Arc<Mutex<Vec<f32>>>,
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = self.frozen.shape(x_layout.shape())?;
        let (wide, a, b) = (widened(x, x_layout)?, widened(a, a_layout)?, widened(b, b_layout)?);
        let ((rank, in_features), (out_features, _)) = (a_layout.shape().dims2()?, b_layout.shape().dims2()?);
        let count = wide.len() / in_features.max(1);
        let mut y = self.frozen.run(&wide)?;
        let mut low = vec![0.0; count * rank];
        let (x_rows, a) = (
            Matrix::new(&wide, count, in_features),
            Matrix::new(&a, rank, in_features),
        );
        product(&mut low, rank, 0.0, 1.0, x_rows, a.t(), Threads::All);
        let (low_rows, b) = (Matrix::new(&low, count, rank), Matrix::new(&b, out_features, rank));
        product(&mut y, out_features, 1.0, self.scale, low_rows, b.t(), Threads::All);
        *self.low.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = low;
        Ok((stored(y, x.dtype())?, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let low = self.low.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let ((rank, in_features), (out_features, _)) = (a.dims2()?, b.dims2()?);
        let count = x.elem_count() / in_features.max(1);
        let learns = x.track_op();
        let (dx, da, db) = numbers_of([x, a, b, &grad.contiguous()?], |[x, a, b, dy]| {
            let (x, dy_rows) = (Matrix::new(x, count, in_features), Matrix::new(dy, count, out_features));
            let (a, b) = (Matrix::new(a, rank, in_features), Matrix::new(b, out_features, rank));
            let mut db = vec![0.0; out_features * rank];
            let low = Matrix::new(&low, count, rank);
            product(&mut db, rank, 0.0, self.scale, dy_rows.t(), low, Threads::All);
            let mut dlow = vec![0.0; count * rank]; // s dy B
            product(&mut dlow, rank, 0.0, self.scale, dy_rows, b, Threads::All);
            let dlow = Matrix::new(&dlow, count, rank);
            let mut da = vec![0.0; rank * in_features];
            product(&mut da, in_features, 0.0, 1.0, dlow.t(), x, Threads::All);
            if !learns {
                return Ok((None, da, db));
            }
            let mut dx = self.frozen.back(dy)?;
            product(&mut dx, in_features, 1.0, 1.0, dlow, a, Threads::All);
            candle_core::Result::Ok((Some(dx), da, db))
        })??;
        let dx = dx.map(|dx| like(dx, x)).transpose()?;
        Ok((dx, Some(like(da, a)?), Some(like(db, b)?)))
    }
}

/// A gradient, in the shape and type of what it is the gradient of.
fn like(numbers: Vec<f32>, tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(numbers, tensor.dims(), tensor.device())?.to_dtype(tensor.dtype())
}
