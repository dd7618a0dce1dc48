//! Linear layers on a GPU, by cuBLAS.
//!
//! The adapter's two products use the input's type; the second one accumulates into the layer's output. Gradients of A
//! and B have the adapter's own type.

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};

use super::{Adapted, Layer, Sizes};
use crate::ops::cuda::{
    self,
    matmul::{Biased, Matrix, Product},
};
use crate::ops::dropout;
use crate::ops::kernel::Address;
use crate::ops::tape::SavedState;

/// Storage with its layout.
type Stored<'a> = (&'a CudaStorage, &'a Layout);

impl Layer {
    pub(super) fn forward_on(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let y = self.run_on((x, layout))?;
        Ok((y, self.sizes.out_shape(layout.shape())))
    }

    /// Computes y = x W^T + b.
    fn run_on(&self, x: Stored) -> Result<CudaStorage> {
        let Sizes {
            rows,
            features,
            out_features,
            ..
        } = self.sizes;
        let (device, dtype) = (x.0.device(), x.0.dtype());
        let sizes = Product {
            rows,
            inner: features,
            columns: out_features,
            alpha: 1.0,
            beta: 0.0,
            dtype,
            to: dtype,
        };
        let mut y = cuda::fresh(device, rows * out_features, dtype)?;
        let weight = self.frozen.weight.dense(dtype)?;
        let (weight, weight_layout) = weight.storage_and_layout();
        let Some(bias) = &self.frozen.bias else {
            let (x, weight) = (
                cuda::address(x.0, x.1)?,
                cuda::address(on_gpu(&weight)?, weight_layout)?,
            );
            sizes.run(device, Matrix::new(x), Matrix::t(weight), cuda::first(&y)?)?;
            return Ok(y);
        };
        let (bias, bias_layout) = bias.storage_and_layout();
        let biased = Biased {
            x,
            weight: (on_gpu(&weight)?, weight_layout),
            bias: (on_gpu(&bias)?, bias_layout),
            sizes,
        };
        biased.run(device, &mut y)?;
        Ok(y)
    }

    /// Computes dx = dy W in the shape of x, added to `onto` if given.
    pub(super) fn back_on(&self, x: &Tensor, grad: &Tensor, onto: Option<Tensor>) -> Result<Tensor> {
        let device = grad.device().as_cuda_device()?;
        let beta = if onto.is_some() { 1.0 } else { 0.0 };
        let dx = onto.map_or_else(|| cuda::fresh_tensor(device, x.dims(), grad.dtype()), Ok)?;
        let product = Product {
            rows: self.sizes.rows,
            inner: self.sizes.out_features,
            columns: self.sizes.features,
            alpha: 1.0,
            beta,
            dtype: grad.dtype(),
            to: grad.dtype(),
        };
        let weight = self.frozen.weight.dense(grad.dtype())?;
        let (dy, weight) = (cuda::address_of(grad)?, cuda::address_of(&weight)?);
        product.run(device, Matrix::new(dy), Matrix::new(weight), cuda::address_of(&dx)?)?;
        Ok(dx)
    }
}

fn on_gpu(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => bail!("a linear layer's matrix is on another device than its input"),
    }
}

impl Adapted {
    pub(super) fn forward_on(&self, x: Stored, a: Stored, b: Stored) -> Result<(CudaStorage, Shape)> {
        let Sizes {
            rows,
            features,
            out_features,
            rank,
        } = self.layer.sizes;
        let (device, dtype) = (x.0.device(), x.0.dtype());
        let y = self.layer.run_on(x)?;
        let (a, b) = (narrowed(a, dtype)?, narrowed(b, dtype)?);
        let low = cuda::fresh(device, rows * rank, dtype)?;
        let plain = Product {
            rows,
            inner: features,
            columns: rank,
            alpha: self.factor(),
            beta: 0.0,
            dtype,
            to: dtype,
        };
        let masked = self.masked_on(device, cuda::address(x.0, x.1)?, dtype)?;
        let x_at = masked.as_ref().map_or_else(|| cuda::address(x.0, x.1), cuda::first)?;
        let low_at = cuda::first(&low)?;
        plain.run(device, Matrix::new(x_at), Matrix::t(a.at()?), low_at)?;
        let onto = Product {
            inner: rank,
            columns: out_features,
            alpha: self.scale,
            beta: 1.0,
            ..plain
        };
        onto.run(device, Matrix::new(low_at), Matrix::t(b.at()?), cuda::first(&y)?)?;
        let low = Tensor::from_storage(Storage::Cuda(low), (rows, rank), BackpropOp::none(), false);
        self.low.get_or_init(|| SavedState::Device(low));
        Ok((y, self.layer.sizes.out_shape(x.1.shape())))
    }

    /// Returns m x, or None without dropout.
    fn masked_on(&self, device: &CudaDevice, x: Address, dtype: DType) -> Result<Option<CudaStorage>> {
        let Some(mask) = &self.dropped else { return Ok(None) };
        let count = self.layer.sizes.rows * self.layer.sizes.features;
        let masked = cuda::fresh(device, count, dtype)?;
        dropout::cuda::apply(mask, device, [x, cuda::first(&masked)?], count, dtype)?;
        Ok(Some(masked))
    }

    /// Returns the needed gradients of x, A and B.
    pub(super) fn back_on(
        &self,
        [x, a, b]: [&Tensor; 3],
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Sizes {
            rows,
            features,
            out_features,
            rank,
        } = self.layer.sizes;
        let Some(SavedState::Device(low)) = self.low.get() else {
            bail!("a linear layer: backward pass without its forward pass");
        };
        let (device, dtype) = (grad.device().as_cuda_device()?, grad.dtype());
        let (dy, low) = (cuda::address_of(grad)?, cuda::address_of(low)?);
        let mut found = (None, None, None);
        if b.track_op() {
            let db = cuda::fresh_tensor(device, (out_features, rank), b.dtype())?;
            let product = Product {
                rows: out_features,
                inner: rows,
                columns: rank,
                alpha: self.scale,
                beta: 0.0,
                dtype,
                to: b.dtype(),
            };
            product.run(device, Matrix::t(dy), Matrix::new(low), cuda::address_of(&db)?)?; // s dy^T (x A^T)
            found.2 = Some(db);
        }
        if !x.track_op() && !a.track_op() {
            return Ok(found);
        }
        let down = cuda::fresh_tensor(device, (rows, rank), dtype)?;
        let product = Product {
            rows,
            inner: out_features,
            columns: rank,
            alpha: self.scale,
            beta: 0.0,
            dtype,
            to: dtype,
        };
        let (b, down_at) = (b.to_dtype(dtype)?, cuda::address_of(&down)?);
        product.run(device, Matrix::new(dy), Matrix::new(cuda::address_of(&b)?), down_at)?; // s dy B
        if a.track_op() {
            let da = cuda::fresh_tensor(device, (rank, features), a.dtype())?;
            let product = Product {
                rows: rank,
                inner: rows,
                columns: features,
                alpha: self.factor(),
                to: a.dtype(),
                ..product
            };
            let masked = self.masked_on(device, cuda::address_of(x)?, dtype)?;
            let x_at = masked.as_ref().map_or_else(|| cuda::address_of(x), cuda::first)?;
            product.run(device, Matrix::t(down_at), Matrix::new(x_at), cuda::address_of(&da)?)?; // s (dy B)^T d
            found.1 = Some(da);
        }
        if x.track_op() {
            let a = a.to_dtype(dtype)?;
            let part = Product {
                inner: rank,
                columns: features,
                alpha: self.factor(),
                ..product
            };
            let run = |part: Product, dx: Address| {
                let a = Matrix::new(cuda::address_of(&a)?);
                part.run(device, Matrix::new(down_at), a, dx)
            };
            found.0 = Some(match &self.dropped {
                None => {
                    let dx = self.layer.back_on(x, grad, None)?;
                    run(Product { beta: 1.0, ..part }, cuda::address_of(&dx)?)?;
                    dx
                }
                Some(mask) => {
                    // The adapter's part first, because only it is masked.
                    let dx = cuda::fresh_tensor(device, x.dims(), dtype)?;
                    let at = cuda::address_of(&dx)?;
                    run(part, at)?;
                    dropout::cuda::apply(mask, device, [at, at], x.elem_count(), dtype)?;
                    self.layer.back_on(x, grad, Some(dx))?
                }
            });
        }
        Ok(found)
    }
}

/// An adapter's matrix in the type of a product.
enum Narrowed<'a> {
    Own(Stored<'a>),
    Made(CudaStorage),
}

fn narrowed(matrix: Stored<'_>, dtype: DType) -> Result<Narrowed<'_>> {
    let (storage, layout) = matrix;
    match storage.dtype() == dtype {
        true => Ok(Narrowed::Own(matrix)),
        false => storage.to_dtype(layout, dtype).map(Narrowed::Made),
    }
}

impl Narrowed<'_> {
    fn at(&self) -> Result<Address> {
        match self {
            Self::Own((storage, layout)) => cuda::address(storage, layout),
            Self::Made(storage) => cuda::first(storage),
        }
    }
}
