//! The encoder's elementwise steps, each in one pass over the memory where that is the CPU's.
//!
//! softmax(a + b) over the last axis, and gelu(a) * b with the tanh form of GELU (arXiv:1606.08415), written as
//! a * b / (1 + exp(-2u)), u = sqrt(2/pi) (a + 0.044715 a^3), which is the same. Without gradients.

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor};
use rayon::prelude::*;

/// `a` is overwritten where that can be.
pub fn softmax_of_sum(a: Tensor, b: &Tensor) -> Result<Tensor> {
    if on_cpu(&a, b) {
        a.inplace_op2(b, &SoftmaxOfSum)?;
        return Ok(a);
    }
    let sum = (a + b)?;
    let last = candle_core::D::Minus1;
    let exp = sum.broadcast_sub(&sum.max_keepdim(last)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(last)?)
}

/// `a` is overwritten where that can be.
pub fn gelu_times(a: Tensor, b: &Tensor) -> Result<Tensor> {
    if on_cpu(&a, b) {
        a.inplace_op2(b, &GeluTimes)?;
        return Ok(a);
    }
    a.gelu()? * b
}

fn on_cpu(a: &Tensor, b: &Tensor) -> bool {
    let plain = |x: &Tensor| x.is_contiguous() && x.dtype() == DType::F32;
    a.device().is_cpu() && plain(a) && plain(b) && a.shape() == b.shape()
}

struct SoftmaxOfSum;

impl InplaceOp2 for SoftmaxOfSum {
    fn name(&self) -> &'static str {
        "softmax-of-sum"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, a_at: &Layout, b: &CpuStorage, b_at: &Layout) -> Result<()> {
        let width = a_at.dims().last().copied().unwrap_or(1).max(1);
        let (a, b) = (slice_mut(a, a_at)?, slice(b, b_at)?);
        a.par_chunks_mut(width)
            .zip(b.par_chunks(width))
            .with_min_len(16)
            .for_each(|(a, b)| {
                let mut top = f32::NEG_INFINITY;
                for (a, b) in a.iter_mut().zip(b) {
                    *a += b;
                    top = if *a > top { *a } else { top };
                }
                let mut sum = 0.0;
                for a in a.iter_mut() {
                    *a = exp(*a - top);
                    sum += *a;
                }
                let scale = 1.0 / sum;
                a.iter_mut().for_each(|a| *a *= scale);
            });
        Ok(())
    }
}

struct GeluTimes;

impl InplaceOp2 for GeluTimes {
    fn name(&self) -> &'static str {
        "gelu-times"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, a_at: &Layout, b: &CpuStorage, b_at: &Layout) -> Result<()> {
        let (a, b) = (slice_mut(a, a_at)?, slice(b, b_at)?);
        a.par_chunks_mut(4096).zip(b.par_chunks(4096)).for_each(|(a, b)| {
            for (a, b) in a.iter_mut().zip(b) {
                let u = 0.797_884_6 * (*a + 0.044_715 * *a * *a * *a);
                *a = *a * b / (1.0 + exp(-2.0 * u));
            }
        });
        Ok(())
    }
}

/// e^x without branches, so that a loop of it is vectorised: 2^n e^r with |r| <= ln(2)/2 and a polynomial for e^r.
///
/// Relative error below 2e-7; beyond the range of f32 it stays at the range's ends.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number
    let x = x.clamp(-87.0, 88.0);
    let n = x * std::f32::consts::LOG2_E + ROUND;
    let whole = n - ROUND;
    let r = x - whole * 0.693_359_375 + whole * 2.121_944_4e-4; // ln(2) in two parts
    let series = [
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let e = series.into_iter().fold(0.0, |sum, coefficient| sum * r + coefficient);
    let power = n.to_bits().wrapping_add(127) << 23; // the low bits of n are the whole number
    e * f32::from_bits(power)
}

fn slice<'a>(storage: &'a CpuStorage, at: &Layout) -> Result<&'a [f32]> {
    let (start, end) = at.contiguous_offsets().ok_or(candle_core::Error::Msg(
        "an elementwise step on strided memory".to_string(),
    ))?;
    Ok(&storage.as_slice()?[start..end])
}

fn slice_mut<'a>(storage: &'a mut CpuStorage, at: &Layout) -> Result<&'a mut [f32]> {
    let (start, end) = at.contiguous_offsets().ok_or(candle_core::Error::Msg(
        "an elementwise step on strided memory".to_string(),
    ))?;
    match storage {
        CpuStorage::F32(data) => Ok(&mut data[start..end]),
        other => candle_core::bail!(
            "an elementwise step on {:?}",
            candle_core::backend::BackendStorage::dtype(other)
        ),
    }
}
