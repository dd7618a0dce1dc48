//! Linear layers with a frozen weight, with and without a trained LoRA adapter.
//!
//! ```text
//! y = x W^T + b + s (d A^T) B^T      d = f m x, or x without dropout
//! dx = dy W + s f m (dy B) A      dA = s (dy B)^T d      dB = s dy^T (d A^T)
//! ```
//!
//! m is a dropout mask, computed on the fly, and f = 1 / (1 - p) a factor of the products, so that m x is exact in the
//! type of x. The unneeded gradient of W is never computed; candle's own product would compute it. arXiv:2106.09685
//!
//! Letters: N rows (samples and tokens together), I features in, O features out, R the adapter's rank.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;
mod narrow;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use half::bf16;

use super::bf16::Isa;
use super::device::has_kernels;
use super::dropout::Mask;
use super::f32_view::{bf16_view, f32_view, like, narrow_numbers_of, numbers_of, stored};
use super::gemm::{Matrix, gemm, gemm_over_rows};
use super::map::{same_rows, zero_rows};
use super::stored::Weight;
use super::tape::{Output, Reads, SavedState, apply1_for, apply3_for};

/// A frozen weight (O, I) and bias (O). Whatever the matrix is stored as, at most a strip of it is decoded at a time,
/// in the forward pass and again in the backward pass.
#[derive(Debug, Clone)]
pub struct Frozen {
    /// Matrix (O, I), in f32, bf16 or a stored form.
    pub weight: Weight,
    /// Bias (O), in f32 or bf16.
    pub bias: Option<Tensor>,
    /// Instructions that multiply bf16 on the CPU; None for products in f32.
    isa: Option<Isa>,
}

/// LoRA matrices A (R, I) and B (O, R) with their scale.
#[derive(Debug, Clone)]
pub struct LowRank<'a> {
    /// Matrix A (R, I).
    pub a: &'a Tensor,
    /// Matrix B (O, R).
    pub b: &'a Tensor,
    /// Factor of B A x.
    pub scale: f64,
}

/// Dimensions of the layer.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    features: usize,
    out_features: usize,
    rank: usize,
}

impl Frozen {
    /// Layer of this matrix and bias.
    pub fn new(weight: impl Into<Weight>, bias: Option<Tensor>) -> Self {
        Self {
            weight: weight.into(),
            bias,
            isa: Isa::detect(),
        }
    }

    /// Returns the layer multiplying by other instructions on the CPU: None for f32.
    pub fn multiplying_by(self, isa: Option<Isa>) -> Self {
        Self { isa, ..self }
    }

    /// Forward pass, x (..., I) -> (..., O), with sums in f32. Only x gets a gradient.
    ///
    /// # Errors
    /// Fails on mismatched shapes or types.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_for(x, Output::Read)
    }

    /// Same as [`Frozen::forward`]; an output that is not read is not computed on the CPU.
    ///
    /// # Errors
    /// Same as [`Frozen::forward`].
    pub fn forward_for(&self, x: &Tensor, output: Output) -> Result<Tensor> {
        let sizes = self.sizes(x)?;
        if !has_kernels(x) {
            return self.reference(x, &sizes);
        }
        if sizes.rows == 0 && !x.device().is_cpu() {
            return Tensor::zeros(sizes.out_shape(x.shape()), x.dtype(), x.device());
        }
        let layer = Layer {
            frozen: self.prepared_for(x)?,
            sizes,
        };
        let reads = Reads {
            inputs: [false],
            output: false,
        };
        let shape = sizes.out_shape(x.shape());
        apply1_for(&x.contiguous()?, layer, reads, output.of(shape))
    }

    /// Forward pass with an adapter, x (..., I) -> (..., O), with sums in f32. Gradients go to those of x, A and B that
    /// need them.
    ///
    /// # Errors
    /// Fails on mismatched shapes or types.
    pub fn forward_with(&self, x: &Tensor, adapter: LowRank) -> Result<Tensor> {
        self.forward_dropping(x, adapter, None)
    }

    /// Same as [`Frozen::forward_with`], with dropout on the adapter's input.
    ///
    /// # Errors
    /// Same as [`Frozen::forward_with`].
    pub fn forward_dropping(&self, x: &Tensor, adapter: LowRank, dropped: Option<Mask>) -> Result<Tensor> {
        self.forward_dropping_for(x, adapter, dropped, Output::Read)
    }

    /// Same as [`Frozen::forward_dropping`]; an output that is not read is not computed on the CPU.
    ///
    /// # Errors
    /// Same as [`Frozen::forward_with`].
    pub fn forward_dropping_for(
        &self,
        x: &Tensor,
        adapter: LowRank,
        dropped: Option<Mask>,
        output: Output,
    ) -> Result<Tensor> {
        let LowRank { a, b, scale } = adapter;
        let mut sizes = self.sizes(x)?;
        sizes.rank = a.dims2()?.0;
        if a.dims() != [sizes.rank, sizes.features] || b.dims() != [sizes.out_features, sizes.rank] {
            let layer = [sizes.out_features, sizes.features];
            bail!(
                "a linear layer {layer:?} was given the adapter {:?}, {:?}",
                a.dims(),
                b.dims()
            );
        }
        if !has_kernels(x) || (sizes.rows == 0 && !x.device().is_cpu()) {
            let rows = x.reshape((sizes.rows, sizes.features))?.to_dtype(a.dtype())?;
            let rows = dropped.map_or_else(|| Ok(rows.clone()), |mask| mask.forward(&rows))?;
            let up = (rows.matmul(&a.t()?)?.matmul(&b.t()?)? * scale)?; // (N, O)
            let y = self.reference(x, &sizes)?;
            return &y + up.to_dtype(x.dtype())?.reshape(y.dims())?;
        }
        let layer = Layer {
            frozen: self.prepared_for(x)?,
            sizes,
        };
        let op = Adapted {
            layer,
            scale: scale as f32,
            dropped,
            low: OnceLock::new(),
        };
        let reads = Reads {
            inputs: [true; 3],
            output: false,
        };
        let inputs = [&x.contiguous()?, &a.contiguous()?, &b.contiguous()?];
        apply3_for(inputs, op, reads, output.of(sizes.out_shape(x.shape())))
    }

    /// Reference in candle's operations, for other devices.
    fn reference(&self, x: &Tensor, sizes: &Sizes) -> Result<Tensor> {
        let rows = x.reshape((sizes.rows, sizes.features))?;
        let mut y = rows.matmul(&self.weight.dense(x.dtype())?.t()?)?; // (N, O)
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.to_dtype(x.dtype())?)?;
        }
        y.reshape(sizes.out_shape(x.shape()))
    }

    fn sizes(&self, x: &Tensor) -> Result<Sizes> {
        let (out_features, features) = self.weight.shape()?;
        let Some((last, others)) = x.dims().split_last() else {
            bail!("a linear layer was given a scalar");
        };
        if *last != features {
            bail!("a linear layer of {features} features was given {:?}", x.dims());
        }
        if let Some(bias) = &self.bias
            && bias.dims() != [out_features]
        {
            let layer = [out_features, features];
            bail!("a linear layer {layer:?} has the bias {:?}", bias.dims());
        }
        Ok(Sizes {
            rows: others.iter().product(),
            features,
            out_features,
            rank: 0,
        })
    }

    /// Returns a contiguous copy; on a GPU, what is dense is in the type of x.
    fn prepared_for(&self, x: &Tensor) -> Result<Self> {
        let ready = |tensor: &Tensor| match x.device().is_cpu() {
            true => tensor.contiguous(),
            false => tensor.to_dtype(x.dtype())?.contiguous(),
        };
        Ok(Self {
            weight: match &self.weight {
                Weight::Dense(weight) => Weight::Dense(ready(weight)?),
                stored => stored.clone(),
            },
            bias: self.bias.as_ref().map(ready).transpose()?,
            isa: self.isa,
        })
    }
}

impl Sizes {
    /// Returns the output shape for an x of this shape.
    fn out_shape(&self, x: &Shape) -> Shape {
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.out_features;
        }
        dims.into()
    }
}

/// A frozen layer, for a number of rows.
struct Layer {
    frozen: Frozen,
    sizes: Sizes,
}

impl Layer {
    /// Computes y = x W^T + b for x (N, I).
    fn run(&self, x: &[f32]) -> Result<Vec<f32>> {
        let Sizes {
            rows,
            features,
            out_features,
            ..
        } = self.sizes;
        let mut y = match &self.frozen.bias {
            None => zero_rows(rows, out_features),
            Some(bias) => numbers_of([bias], |[bias]| same_rows(rows, bias))?,
        };
        let kept = if self.frozen.bias.is_some() { 1.0 } else { 0.0 };
        let x = Matrix::new(x, rows, features);
        if rows > 0 {
            self.frozen
                .weight
                .strips(|first, strip| gemm(&mut y[first..], out_features, kept, 1.0, x, strip.t()))?;
        }
        Ok(y)
    }

    /// Computes dx = dy W for dy (N, O), added to `onto` if given.
    fn back(&self, dy: &[f32], onto: Option<Vec<f32>>) -> Result<Vec<f32>> {
        let Sizes {
            rows,
            features,
            out_features,
            ..
        } = self.sizes;
        let adds = onto.is_some();
        let mut dx = onto.unwrap_or_else(|| zero_rows(rows, features));
        if rows > 0 {
            self.frozen.weight.strips(|first, strip| {
                let dy = Matrix::strided(&dy[first..], rows, strip.rows, out_features);
                let kept = if adds || first > 0 { 1.0 } else { 0.0 };
                gemm(&mut dx, features, kept, 1.0, dy, strip);
            })?;
        }
        Ok(dx)
    }
}

impl CustomOp1 for Layer {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        if let Some(isa) = self.narrow_isa(x.dtype()) {
            let y = self.run_narrow(isa, &bf16_view(x, layout)?, None)?;
            return Ok((CpuStorage::BF16(y), self.sizes.out_shape(layout.shape())));
        }
        let y = self.run(&f32_view(x, layout)?)?;
        Ok((stored(y, x.dtype())?, self.sizes.out_shape(layout.shape())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.forward_on(x, layout)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.back_on(x, &grad.contiguous()?, None).map(Some);
        }
        let grad = grad.contiguous()?;
        if let Some(isa) = self.narrow_isa(x.dtype()) {
            let dx = narrow_numbers_of([&grad], |[dy]| self.back_narrow(isa, dy, None, None))??;
            return narrow_like(dx, x).map(Some);
        }
        let dx = numbers_of([&grad], |[dy]| self.back(dy, None))??;
        like(dx, x).map(Some)
    }
}

struct Adapted {
    layer: Layer,
    scale: f32,
    dropped: Option<Mask>,
    /// d A^T (N, R): saved by the forward pass for the backward pass.
    low: OnceLock<SavedState>,
}

/// Gradients of x (N, I), A (R, I) and B (O, R).
#[derive(Default)]
struct Gradients<T> {
    x: Option<Vec<T>>,
    a: Option<Vec<f32>>,
    b: Option<Vec<f32>>,
}

impl CustomOp3 for Adapted {
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
        let Sizes {
            rows,
            out_features,
            rank,
            ..
        } = self.layer.sizes;
        if let Some(isa) = self.layer.narrow_isa(x.dtype()) {
            let inputs = [(x, x_layout), (a, a_layout), (b, b_layout)];
            let y = self.run_narrow(isa, inputs)?;
            return Ok((CpuStorage::BF16(y), self.layer.sizes.out_shape(x_layout.shape())));
        }
        let (wide, a, b) = (f32_view(x, x_layout)?, f32_view(a, a_layout)?, f32_view(b, b_layout)?);
        let mut y = self.layer.run(&wide)?;
        let low = self.low(&wide, &a);
        let (low_rows, b) = (Matrix::new(&low, rows, rank), Matrix::new(&b, out_features, rank));
        gemm(&mut y, out_features, 1.0, self.scale, low_rows, b.t());
        self.low.get_or_init(|| SavedState::Host(Arc::new(low)));
        Ok((stored(y, x.dtype())?, self.layer.sizes.out_shape(x_layout.shape())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        a: &candle_core::CudaStorage,
        a_layout: &Layout,
        b: &candle_core::CudaStorage,
        b_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.forward_on((x, x_layout), (a, a_layout), (b, b_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.back_on([x, a, b], &grad.contiguous()?);
        }
        let wanted = [x, a, b].map(Tensor::track_op);
        let numbers = [x, a, b, &grad.contiguous()?];
        let (dx, da, db) = match self.layer.narrow_isa(x.dtype()) {
            Some(isa) => {
                let gradients =
                    narrow_numbers_of(numbers, |[x, a, b, dy]| self.back_narrow(isa, wanted, [x, a, b, dy]))??;
                let dx = gradients.x.map(|dx| narrow_like(dx, x));
                (dx.transpose()?, gradients.a, gradients.b)
            }
            None => {
                let gradients = numbers_of(numbers, |[x, a, b, dy]| self.back(wanted, [x, a, b, dy]))??;
                let dx = gradients.x.map(|dx| like(dx, x));
                (dx.transpose()?, gradients.a, gradients.b)
            }
        };
        let like = |gradient: Option<Vec<f32>>, tensor| gradient.map(|numbers| like(numbers, tensor)).transpose();
        Ok((dx, like(da, a)?, like(db, b)?))
    }
}

impl Adapted {
    /// Returns d A^T.
    fn low(&self, x: &[f32], a: &[f32]) -> Vec<f32> {
        let Sizes {
            rows, features, rank, ..
        } = self.layer.sizes;
        let (mut low, masked) = (vec![0.0; rows * rank], self.masked(x));
        let (x, a) = (Matrix::new(&masked, rows, features), Matrix::new(a, rank, features));
        gemm(&mut low, rank, 0.0, self.factor(), x, a.t());
        low
    }

    /// Returns m x, or x without dropout.
    fn masked<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        match &self.dropped {
            None => Cow::Borrowed(x),
            Some(mask) => {
                let mut masked = x.to_vec();
                mask.apply(&mut masked);
                Cow::Owned(masked)
            }
        }
    }

    /// Returns f.
    fn factor(&self) -> f32 {
        self.dropped.map_or(1.0, |mask| mask.factor)
    }

    /// Returns the needed gradients of x, A and B.
    fn back(&self, [wants_x, wants_a, wants_b]: [bool; 3], [x, a, b, dy]: [&[f32]; 4]) -> Result<Gradients<f32>> {
        let Sizes {
            rows,
            features,
            out_features,
            rank,
        } = self.layer.sizes;
        let mut gradients = Gradients::default();
        let dy_rows = Matrix::new(dy, rows, out_features);
        if wants_b {
            // The forward pass did not run if its output was not read.
            let SavedState::Host(low) = self.low.get_or_init(|| SavedState::Host(Arc::new(self.low(x, a)))) else {
                bail!("a linear layer: its forward pass ran on another device than its backward pass");
            };
            gradients.b = Some(gemm_over_rows(self.scale, dy_rows, Matrix::new(low, rows, rank)));
        }
        if !wants_x && !wants_a {
            return Ok(gradients);
        }
        let mut down = vec![0.0; rows * rank]; // s dy B
        gemm(
            &mut down,
            rank,
            0.0,
            self.scale,
            dy_rows,
            Matrix::new(b, out_features, rank),
        );
        let down = Matrix::new(&down, rows, rank);
        if wants_a {
            let masked = self.masked(x);
            let d = Matrix::new(&masked, rows, features);
            gradients.a = Some(gemm_over_rows(self.factor(), down, d));
        }
        if wants_x {
            let a = Matrix::new(a, rank, features);
            gradients.x = Some(match &self.dropped {
                None => {
                    let mut dx = self.layer.back(dy, None)?;
                    gemm(&mut dx, features, 1.0, 1.0, down, a);
                    dx
                }
                Some(mask) => {
                    let mut dx = zero_rows(rows, features);
                    gemm(&mut dx, features, 0.0, self.factor(), down, a);
                    mask.apply(&mut dx);
                    self.layer.back(dy, Some(dx))?
                }
            });
        }
        Ok(gradients)
    }
}

/// Returns a gradient in the shape and type of its tensor, which is in bf16.
fn narrow_like(numbers: Vec<bf16>, tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(numbers, tensor.dims(), tensor.device())
}
