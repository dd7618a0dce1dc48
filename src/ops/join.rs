//! `y = [a, b]`: two tensors one behind the other along an axis, and parts of one. Gradients are taken apart and put together
//! likewise; nothing is saved for the backward pass.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cpu_backend::CpuDevice;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Storage, Tensor, bail};

#[cfg(feature = "cuda")]
use super::cuda::{self, rows::Rows};
use super::map::{Zeros, gathered};
use super::tape::{Reads, apply1, apply2};

/// Returns a (.., m, ..) and b (.., n, ..), which differ along axis `dim` alone, as one tensor (.., m + n, ..).
///
/// # Errors
/// Fails for other shapes, and for two types.
pub fn join(a: &Tensor, b: &Tensor, dim: usize) -> Result<Tensor> {
    let others = |x: &Tensor| {
        let mut dims = x.dims().to_vec();
        (dim < dims.len()).then(|| dims.remove(dim))?;
        Some(dims)
    };
    if others(a).is_none() || others(a) != others(b) || a.dtype() != b.dtype() {
        let ([a, b], [a_type, b_type]) = ([a.dims(), b.dims()], [a.dtype(), b.dtype()]);
        bail!("{a:?} in {a_type:?} and {b:?} in {b_type:?} cannot be joined along axis {dim}");
    }
    let reads = Reads {
        inputs: [false; 2],
        output: false,
    };
    apply2([&a.contiguous()?, &b.contiguous()?], Join { dim }, reads)
}

/// Returns `count` indices of x along axis `dim`, from `start` on: contiguous, and a view if x is so there.
///
/// # Errors
/// Fails for indices beyond the last one.
pub fn part(x: &Tensor, dim: usize, start: usize, count: usize) -> Result<Tensor> {
    let part = x.narrow(dim, start, count)?;
    let reads = Reads {
        inputs: [false],
        output: false,
    };
    match part.is_contiguous() {
        true => Ok(part),
        false => apply1(&part, Compact, reads),
    }
}

/// Numbers in their order; the gradient is that of the output.
struct Compact;

impl CustomOp1 for Compact {
    fn name(&self) -> &'static str {
        "part"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((compact_here(x, layout)?, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((compact(x, layout)?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(x.track_op().then(|| grad.clone()))
    }
}

/// Returns a contiguous tensor of these numbers.
fn own(part: &Tensor) -> Result<Tensor> {
    if part.is_contiguous() {
        return Ok(part.clone());
    }
    let (storage, layout) = part.storage_and_layout();
    let compact = match &*storage {
        Storage::Cpu(storage) => Storage::Cpu(compact_here(storage, layout)?),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => Storage::Cuda(compact(storage, layout)?),
        _ => return part.contiguous(),
    };
    Ok(Tensor::from_storage(compact, part.shape(), BackpropOp::none(), false))
}

/// Returns the numbers of a layout on the CPU in their order.
fn compact_here(x: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
    let (count, start) = (layout.shape().elem_count(), layout.start_offset());
    let (row, step) = row_step(layout).unwrap_or_default();
    let run = |at: usize| start + at / row * step + at % row..start + at / row * step + row;
    Ok(match x {
        CpuStorage::F32(x) if row > 0 => CpuStorage::F32(gathered(count, |at| &x[run(at)])),
        CpuStorage::BF16(x) if row > 0 => CpuStorage::BF16(gathered(count, |at| &x[run(at)])),
        other => {
            // SAFETY: the copy writes all of it.
            let mut y = unsafe { CpuDevice.alloc_uninit(layout.shape(), other.dtype())? };
            other.copy_strided_src(&mut y, 0, layout)?;
            y
        }
    })
}

/// Returns the numbers of a layout in their order.
#[cfg(feature = "cuda")]
fn compact(x: &candle_core::CudaStorage, layout: &Layout) -> Result<candle_core::CudaStorage> {
    let (count, size) = (layout.shape().elem_count(), x.dtype().size_in_bytes());
    let mut y = cuda::fresh(x.device(), count, x.dtype())?;
    match row_step(layout) {
        Some((row, step)) => {
            let rows = Rows {
                from: cuda::first(x)? + (layout.start_offset() * size) as u64,
                from_step: step * size,
                to: cuda::first(&y)?,
                to_step: row * size,
                bytes: row * size,
                rows: count / row,
            };
            rows.copy(x.device())?;
        }
        None => x.copy_strided_src(&mut y, 0, layout)?,
    }
    Ok(y)
}

/// Returns the numbers of a row, and those from one row to the next, of a layout that is contiguous but for one axis, of which
/// it has a part; None for others.
fn row_step(layout: &Layout) -> Option<(usize, usize)> {
    let axes = layout.dims().iter().zip(layout.stride()).filter(|(dim, _)| **dim != 1);
    let (mut row, mut step, mut next) = (1, None, 1);
    for (dim, stride) in axes.rev() {
        match step {
            None if *stride == row => row *= dim,
            None => (step, next) = (Some(*stride), stride * dim),
            Some(_) if *stride == next => next *= dim,
            Some(_) => return None,
        }
    }
    Some((row, step.unwrap_or(row)))
}

struct Join {
    dim: usize,
}

impl Join {
    /// Returns the number of runs, and the numbers that each has of a and of b.
    fn runs(&self, a: &Layout, b: &Layout) -> (usize, [usize; 2]) {
        let after = |layout: &Layout| layout.dims()[self.dim..].iter().product();
        (a.dims()[..self.dim].iter().product(), [after(a), after(b)])
    }

    fn shape(&self, a: &Layout, b: &Layout) -> Shape {
        let mut dims = a.dims().to_vec();
        dims[self.dim] += b.dims()[self.dim];
        dims.into()
    }
}

impl CustomOp2 for Join {
    fn name(&self) -> &'static str {
        "join"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (Some((a_start, _)), Some((b_start, _))) = (a_layout.contiguous_offsets(), b_layout.contiguous_offsets())
        else {
            bail!("join needs contiguous tensors");
        };
        let (_, sizes) = self.runs(a_layout, b_layout);
        let of = |all: usize, start: usize| start..start + all;
        let (a_place, b_place) = (
            of(a_layout.shape().elem_count(), a_start),
            of(b_layout.shape().elem_count(), b_start),
        );
        let storage = match (a, b) {
            (CpuStorage::F32(a), CpuStorage::F32(b)) => CpuStorage::F32(joined(&a[a_place], &b[b_place], sizes)),
            (CpuStorage::BF16(a), CpuStorage::BF16(b)) => CpuStorage::BF16(joined(&a[a_place], &b[b_place], sizes)),
            (CpuStorage::F16(a), CpuStorage::F16(b)) => CpuStorage::F16(joined(&a[a_place], &b[b_place], sizes)),
            (CpuStorage::F64(a), CpuStorage::F64(b)) => CpuStorage::F64(joined(&a[a_place], &b[b_place], sizes)),
            _ => bail!("numbers in {:?} are not joined", a.dtype()),
        };
        Ok((storage, self.shape(a_layout, b_layout)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &candle_core::CudaStorage,
        a_layout: &Layout,
        b: &candle_core::CudaStorage,
        b_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let shape = self.shape(a_layout, b_layout);
        let (runs, [first, second]) = self.runs(a_layout, b_layout);
        let (size, dtype) = (a.dtype().size_in_bytes(), a.dtype());
        let y = cuda::fresh(a.device(), shape.elem_count(), dtype)?;
        let (to, step) = (cuda::first(&y)?, (first + second) * size);
        for (from, width, offset) in [
            (cuda::address(a, a_layout)?, first, 0),
            (cuda::address(b, b_layout)?, second, first),
        ] {
            let rows = Rows {
                from,
                from_step: width * size,
                to: to + (offset * size) as u64,
                to_step: step,
                bytes: width * size,
                rows: runs,
            };
            rows.copy(a.device())?;
        }
        Ok((y, shape))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (first, second) = (a.dim(self.dim)?, b.dim(self.dim)?);
        let of = |input: &Tensor, start: usize, count: usize| {
            let gradient = || own(&grad.narrow(self.dim, start, count)?);
            input.track_op().then(gradient).transpose()
        };
        Ok((of(a, 0, first)?, of(b, first, second)?))
    }
}

/// Returns runs of so many numbers of a and of b in turn.
fn joined<T: Zeros>(a: &[T], b: &[T], [first, second]: [usize; 2]) -> Vec<T> {
    gathered(a.len() + b.len(), |at| {
        let (run, at) = (at / (first + second), at % (first + second));
        match at.checked_sub(first) {
            None => &a[run * first..][at..first],
            Some(at) => &b[run * second..][at..second],
        }
    })
}
