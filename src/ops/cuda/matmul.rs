//! Matrix products by cuBLAS that accumulate into their output, with sums in f32: `c = alpha a b + beta c`.
//!
//! candle's own product writes a new tensor each time. Here an adapter's part is added to a layer's output, and a
//! gradient in f32 comes straight from factors in bf16. cuBLASLt adds a bias within the product where sizes allow it.

use std::cell::RefCell;
use std::ffi::c_void;

use candle_core::cuda_backend::{CudaDType, DeviceId, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, bail};
use cudarc::cublas::{result, sys};
use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use half::bf16;

use super::{Kernels, kernels};
use crate::ops::kernel::Address;
use crate::ops::linear::launch;
use crate::ops::profile;

const KERNELS: Kernels = kernels!("linear");

/// A matrix stored by rows or by columns.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Address of the first number.
    pub at: Address,
    /// True if columns follow each other.
    pub transposed: bool,
}

impl Matrix {
    /// Matrix stored row by row at this address.
    pub fn new(at: Address) -> Self {
        Self { at, transposed: false }
    }

    /// Transpose of the matrix stored row by row at this address.
    pub fn t(at: Address) -> Self {
        Self { at, transposed: true }
    }
}

/// `c = alpha a b + beta c` for a (rows, inner), b (inner, columns), c (rows, columns).
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of a and c.
    pub rows: usize,
    /// Columns of a, rows of b.
    pub inner: usize,
    /// Columns of b and c.
    pub columns: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of the previous c.
    pub beta: f32,
    /// Type of the factors.
    pub dtype: DType,
    /// Type of c.
    pub to: DType,
}

impl Product {
    /// Label for logs: rows x inner x columns, and the types of the factors and of the result.
    fn words(&self) -> String {
        let Self {
            rows,
            inner,
            columns,
            dtype,
            to,
            ..
        } = self;
        format!("{rows}x{inner}x{columns} {dtype:?} {to:?}")
    }

    /// Queues the product.
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16, and if cuBLAS refuses it.
    pub fn run(&self, device: &CudaDevice, a: Matrix, b: Matrix, c: Address) -> Result<()> {
        let side = |size: usize| i32::try_from(size).map_err(candle_core::Error::wrap);
        let (rows, inner, columns) = (side(self.rows)?, side(self.inner)?, side(self.columns)?);
        let (factor, to) = (blas_type(self.dtype)?, blas_type(self.to)?);
        let operation = |matrix: Matrix| match matrix.transposed {
            true => sys::cublasOperation_t::CUBLAS_OP_T,
            false => sys::cublasOperation_t::CUBLAS_OP_N,
        };
        let step = |matrix: Matrix, height: i32, width: i32| if matrix.transposed { height } else { width };
        let pointer = |at: Address| at as *const c_void;
        let _span = profile::kernel(device, || format!("product {}", self.words()));
        let blas = device.cublas_handle();
        // cuBLAS is column-major: it sees the transposes, and c^T = b^T a^T. SAFETY: the matrices have these sizes, and
        // lie on the stream's device.
        unsafe {
            result::gemm_ex(
                *blas.handle(),
                operation(b),
                operation(a),
                columns,
                rows,
                inner,
                (&raw const self.alpha).cast(),
                pointer(b.at),
                factor,
                step(b, inner, columns),
                pointer(a.at),
                factor,
                step(a, rows, inner),
                (&raw const self.beta).cast(),
                c as *mut c_void,
                to,
                columns,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()
    }
}

fn blas_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
        other => bail!("products are of f32 and bf16, not {other:?}"),
    }
}

/// x (rows, inner), weight (columns, inner), bias (columns), all of one type.
#[derive(Clone, Copy)]
pub struct Biased<'a> {
    /// Input (rows, inner).
    pub x: (&'a CudaStorage, &'a Layout),
    /// Weight (columns, inner).
    pub weight: (&'a CudaStorage, &'a Layout),
    /// Bias (columns).
    pub bias: (&'a CudaStorage, &'a Layout),
    /// Sizes and number formats of the product.
    pub sizes: Product,
}

impl Biased<'_> {
    /// Computes y = x weight^T + bias, overwriting all of `y`.
    ///
    /// # Errors
    /// Fails if cuBLAS refuses it.
    pub fn run(&self, device: &CudaDevice, y: &mut CudaStorage) -> Result<()> {
        let Product {
            rows, inner, columns, ..
        } = self.sizes;
        // cuBLASLt's fast algorithms need rows that are multiples of 16 bytes.
        if self.sizes.dtype == DType::BF16 && inner % 8 == 0 && columns % 8 == 0 {
            return self.fused::<bf16>(device, y);
        }
        let at = |(storage, layout): (&CudaStorage, &Layout)| super::address(storage, layout);
        let to = super::first(y)?;
        self.sizes
            .run(device, Matrix::new(at(self.x)?), Matrix::t(at(self.weight)?), to)?;
        let bias = at(self.bias)?;
        KERNELS.launch(device, &launch::bias(to, bias, [rows, columns], self.sizes.dtype)?)
    }

    fn fused<T: CudaDType>(&self, device: &CudaDevice, y: &mut CudaStorage) -> Result<()>
    where
        CudaBlasLT: Matmul<T>,
    {
        let Product {
            rows, inner, columns, ..
        } = self.sizes;
        let config = MatmulConfig {
            transa: true,
            transb: false,
            transc: false,
            m: columns as u64,
            n: rows as u64,
            k: inner as u64,
            alpha: 1.0,
            lda: inner as i64,
            ldb: inner as i64,
            beta: 0.0,
            ldc: columns as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        let _span = profile::kernel(device, || format!("cublaslt {}", self.sizes.words()));
        let [weight, x, bias] = [self.weight, self.x, self.bias];
        let (weight, x) = (view::<T>(weight)?, view::<T>(x)?);
        let bias = view::<T>(bias)?;
        let y = y.as_cuda_slice_mut::<T>()?;
        with_lt(device, |lt| {
            // SAFETY: the matrices have these sizes, row by row; what cuBLASLt sees are the transposes.
            unsafe { lt.matmul(config, &weight, &x, y, Some(&bias), None) }.map_err(candle_core::Error::wrap)
        })
    }
}

fn view<'a, T: CudaDType>((storage, layout): (&'a CudaStorage, &Layout)) -> Result<cudarc::driver::CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a product needs a contiguous matrix, got {layout:?}");
    };
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// Calls `run` with this thread's cuBLASLt on the device. Creating it takes some memory and time; it lives as long as
/// the process.
fn with_lt<T>(device: &CudaDevice, run: impl FnOnce(&CudaBlasLT) -> Result<T>) -> Result<T> {
    thread_local! {
        static STARTED: RefCell<Vec<(DeviceId, &'static CudaBlasLT)>> = const { RefCell::new(Vec::new()) };
    }
    let known = STARTED.with_borrow(|started| started.iter().find(|(id, _)| *id == device.id()).map(|(_, lt)| *lt));
    let lt = match known {
        Some(lt) => lt,
        None => {
            let started = CudaBlasLT::new(device.cuda_stream()).map_err(candle_core::Error::wrap)?;
            let lt: &'static CudaBlasLT = Box::leak(Box::new(started));
            STARTED.with_borrow_mut(|started| started.push((device.id(), lt)));
            lt
        }
    };
    run(lt)
}
