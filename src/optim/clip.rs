//! Gradient clipping by global norm; equal to `torch.nn.utils.clip_grad_norm_`.
//!
//! norm = sqrt(sum of the squares of all elements of all gradients), coefficient = min(1, max_norm / (norm + 1e-6)).

use candle_core::{CpuStorage, DType, Result, Storage, Tensor};
use rayon::prelude::*;

/// Independent running sums. Their number fixes the order of the additions.
const LANES: usize = 8;

/// Returns the norm of all gradients as one vector: summed in f64 and in a fixed order.
pub fn global_norm(gradients: &[Tensor]) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if gradients.first().is_some_and(|gradient| gradient.device().is_cuda()) {
        return Ok(super::cuda::square_sum(gradients)?.sqrt());
    }
    let sums = if gradients.iter().all(|gradient| gradient.device().is_cpu()) {
        gradients.par_iter().map(square_sum).collect::<Result<Vec<f64>>>()?
    } else {
        on_device(gradients)?
    };
    Ok(sums.iter().sum::<f64>().sqrt())
}

/// Returns the factor of every gradient, at most 1; NaN if the norm is NaN.
pub fn coefficient(norm: f64, max_norm: f64) -> f64 {
    let coefficient = max_norm / (norm + 1e-6);
    if coefficient > 1.0 { 1.0 } else { coefficient } // `min` would make 1 of NaN
}

fn square_sum(gradient: &Tensor) -> Result<f64> {
    let gradient = gradient.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = gradient.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(numbers)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        candle_core::bail!("the norm of a gradient that is not on the CPU");
    };
    let (blocks, rest) = numbers[start..end].as_chunks::<LANES>();
    let mut sums = [0f64; LANES];
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    let rest: f64 = rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    Ok(sums.iter().sum::<f64>() + rest)
}

/// Returns the sums of squares, fetched in one transfer.
fn on_device(gradients: &[Tensor]) -> Result<Vec<f64>> {
    let sums = gradients.iter().map(|g| g.to_dtype(DType::F64)?.sqr()?.sum_all());
    Tensor::stack(&sums.collect::<Result<Vec<_>>>()?, 0)?.to_vec1()
}
