//! Elementwise steps of the encoder, on the CPU each in a single pass over memory. Without gradients.
//!
//! softmax(a + b) over the last axis; x / sqrt(mean(x^2) + eps) * weight likewise (arXiv:1910.07467); a + b; and
//! gelu(a) * b with the tanh form of GELU (arXiv:1606.08415), written as a * b / (1 + exp(-2u)), u = sqrt(2/pi) (a +
//! 0.044715 a^3), which is the same.

use candle_core::{CpuStorage, CustomOp2, DType, InplaceOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::nn::{self, Weights};

/// Independent sums of a row, so that the loop over it is vectorised.
const LANES: usize = 16;

/// Minimum rows per thread.
const ROWS: usize = 16;

/// Numbers that one thread processes at a time; fewer than for sums, because gates cost more each.
const GATED: usize = 1 << 12;
const ADDED: usize = 1 << 14;

/// transformers' T5LayerNorm: [`nn::Norm::rms`], in one pass on the CPU.
#[derive(Debug)]
pub struct Norm {
    weight: Tensor, // (D) f32
    eps: f64,
    elsewhere: nn::Norm,
}

impl Norm {
    /// Reads `weight`.
    pub fn new(width: usize, eps: f64, weights: Weights) -> Result<Self> {
        let weights = weights.to_dtype(DType::F32);
        Ok(Self {
            weight: weights.get(width, "weight")?,
            eps,
            elsewhere: nn::Norm::rms(width, eps, weights)?,
        })
    }

    /// Forward pass (..., D) f32 -> (..., D) f32
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if on_cpu(x, x) {
            return x.apply_op2_no_bwd(&self.weight, &RowNorm { eps: self.eps });
        }
        self.elsewhere.forward(x)
    }
}

/// Adds `b`, overwriting `a` if possible.
pub fn add(a: Tensor, b: &Tensor) -> Result<Tensor> {
    if on_cpu(&a, b) {
        a.inplace_op2(b, &Add)?;
        return Ok(a);
    }
    a + b
}

/// Returns softmax(a + b), overwriting `a` if possible.
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

/// Returns gelu(a) * b, overwriting `a` if possible.
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
            .with_min_len(ROWS)
            .for_each(|(a, b)| softmax_row(a, b));
        Ok(())
    }
}

fn softmax_row(a: &mut [f32], b: &[f32]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    let top = by_lanes(a, f32::NEG_INFINITY, |a| a, |top, a| if a > top { a } else { top });
    a.iter_mut().for_each(|a| *a = exp(*a - top));
    let scale = 1.0 / by_lanes(a, 0.0, |a| a, |sum, a| sum + a);
    a.iter_mut().for_each(|a| *a *= scale);
}

struct GeluTimes;

impl InplaceOp2 for GeluTimes {
    fn name(&self) -> &'static str {
        "gelu-times"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, a_at: &Layout, b: &CpuStorage, b_at: &Layout) -> Result<()> {
        let (a, b) = (slice_mut(a, a_at)?, slice(b, b_at)?);
        a.par_chunks_mut(GATED).zip(b.par_chunks(GATED)).for_each(|(a, b)| {
            for (a, b) in a.iter_mut().zip(b) {
                let u = 0.797_884_6 * (*a + 0.044_715 * *a * *a * *a);
                *a = *a * b / (1.0 + exp(-2.0 * u));
            }
        });
        Ok(())
    }
}

struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, a_at: &Layout, b: &CpuStorage, b_at: &Layout) -> Result<()> {
        let (a, b) = (slice_mut(a, a_at)?, slice(b, b_at)?);
        a.par_chunks_mut(ADDED).zip(b.par_chunks(ADDED)).for_each(|(a, b)| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        });
        Ok(())
    }
}

struct RowNorm {
    eps: f64,
}

impl CustomOp2 for RowNorm {
    fn name(&self) -> &'static str {
        "row-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_at: &Layout, w: &CpuStorage, w_at: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, x_at)?, slice(w, w_at)?);
        let width = weight.len().max(1);
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(width)
            .zip(x.par_chunks(width))
            .with_min_len(ROWS)
            .for_each(|(out, x)| {
                let mean = by_lanes(x, 0.0, |x| x * x, |sum, x| sum + x) / width as f32;
                let scale = 1.0 / (mean + self.eps as f32).sqrt();
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * scale * weight;
                }
            });
        Ok((CpuStorage::F32(out), x_at.shape().clone()))
    }
}

/// Reduces `of` each number in a row by `join`, in lanes and then across them.
fn by_lanes(row: &[f32], start: f32, of: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes
            .iter_mut()
            .zip(chunk)
            .for_each(|(lane, x)| *lane = join(*lane, of(*x)));
    }
    lanes
        .iter_mut()
        .zip(rest)
        .for_each(|(lane, x)| *lane = join(*lane, of(*x)));
    lanes.into_iter().fold(start, join)
}

/// Returns e^x without branches, so that a loop of it is vectorised: 2^n e^r with |r| <= ln(2)/2 and a polynomial for
/// e^r.
///
/// Relative error below 2e-7; clamped to the range of f32.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number
    let x = x.clamp(-87.0, 88.0);
    let n = x * std::f32::consts::LOG2_E + ROUND;
    let whole = n - ROUND;
    let r = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4; // ln(2) in two parts
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

fn contiguous(at: &Layout) -> Result<(usize, usize)> {
    let strided = || candle_core::Error::Msg("an elementwise step on strided memory".to_string());
    at.contiguous_offsets().ok_or_else(strided)
}

fn slice<'a>(storage: &'a CpuStorage, at: &Layout) -> Result<&'a [f32]> {
    let (start, end) = contiguous(at)?;
    Ok(&storage.as_slice()?[start..end])
}

fn slice_mut<'a>(storage: &'a mut CpuStorage, at: &Layout) -> Result<&'a mut [f32]> {
    let (start, end) = contiguous(at)?;
    match storage {
        CpuStorage::F32(data) => Ok(&mut data[start..end]),
        other => candle_core::bail!(
            "an elementwise step on {:?}",
            candle_core::backend::BackendStorage::dtype(other)
        ),
    }
}
