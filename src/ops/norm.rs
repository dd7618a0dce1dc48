//! Normalisation over the last axis with a gain and an offset for each part of a sequence: layer norm and RMS norm,
//! plain or modulated by the timestep.
//!
//! ```text
//! layer norm  n = (x - mean(x)) / sqrt(var(x) + eps)      RMS norm  n = x / sqrt(mean(x^2) + eps)
//! y = n g + o
//! dx = (h - mean(h) - n mean(h n)) / sqrt(...) with h = dy g; without mean(h) for the RMS norm
//! dg = sum of dy n, do = sum of dy, over the rows of a part
//! ```
//!
//! A plain norm has g = weight and o = bias. A modulated norm has g = weight (1 + scale), o = bias (1 + scale) + shift,
//! which are small enough for candle to compute and differentiate. arXiv:1607.06450, 1910.07467, 2212.09748
//!
//! Shapes: B samples, R rows of a sample, P parts, D features.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::device::has_kernels;
use super::f32_view::{f32_view, numbers_of};
use super::map::{Numbers, map, map_like};
use super::parts::{check, pieces, small_pieces, suits};
use super::simd_math::{LANES, sum, wide};
use super::tape::{Reads, apply3};
use crate::process::allocations::compute;

/// Kinds of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance.
    Layer,
    /// Root mean square.
    Rms,
}

/// A norm over the last axis.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Kind of norm.
    pub kind: NormKind,
    /// Number added to the variance or mean square.
    pub eps: f64,
    /// Rows of each consecutive part of a sample. Together they are all rows.
    pub parts: Vec<usize>,
}

impl Norm {
    /// Forward pass, x (B, ..., D), gain and offset (B or 1, P, D) -> (B, ..., D).
    ///
    /// # Errors
    /// Fails for shapes that do not fit the parts; on the CPU, for types other than f32 and bf16.
    pub fn forward(&self, x: &Tensor, gain: &Tensor, offset: &Tensor) -> Result<Tensor> {
        let (batch, width) = (x.dim(0)?, x.dim(D::Minus1)?);
        let rows: usize = self.parts.iter().sum();
        if x.elem_count() != batch * rows * width {
            candle_core::bail!("a norm over {:?} rows of {width} was given {:?}", self.parts, x.dims());
        }
        check("a norm's gain", gain, batch, &self.parts, width)?;
        check("a norm's offset", offset, batch, &self.parts, width)?;
        if x.elem_count() == 0 {
            return Ok(x.clone());
        }
        if !has_kernels(x) || !suits(x, &self.parts) {
            return self.reference(x, gain, offset);
        }
        let (gain, offset) = (gain.to_dtype(DType::F32)?, offset.to_dtype(DType::F32)?);
        let op = NormOp {
            norm: self.clone(),
            width,
        };
        let reads = Reads {
            inputs: [true, true, false],
            output: false,
        };
        apply3(
            [&x.contiguous()?, &gain.contiguous()?, &offset.contiguous()?],
            op,
            reads,
        )
    }

    /// Reference in candle's own operations: for other devices.
    ///
    /// # Errors
    /// Same as [`Norm::forward`].
    pub fn reference(&self, x: &Tensor, gain: &Tensor, offset: &Tensor) -> Result<Tensor> {
        let (batch, width) = (x.dim(0)?, x.dim(D::Minus1)?);
        let wide = x.reshape((batch, (), width))?.to_dtype(DType::F32)?; // (B, R, D)
        let centred = match self.kind {
            NormKind::Layer => wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms => wide,
        };
        let spread = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let normed = centred.broadcast_div(&spread)?; // (B, R, D)
        let mut first = 0;
        let mut parts = Vec::new();
        for (part, rows) in self.parts.iter().enumerate() {
            let of = |table: &Tensor| table.narrow(1, part, 1)?.to_dtype(DType::F32); // (B or 1, 1, D)
            let normed = normed.narrow(1, first, *rows)?;
            parts.push(normed.broadcast_mul(&of(gain)?)?.broadcast_add(&of(offset)?)?);
            first += rows;
        }
        Tensor::cat(&parts, 1)?.reshape(x.dims())?.to_dtype(x.dtype())
    }
}

struct NormOp {
    norm: Norm,
    width: usize,
}

impl CustomOp3 for NormOp {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
        offset: &CpuStorage,
        offset_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gain, offset) = (f32_view(gain, gain_layout)?, f32_view(offset, offset_layout)?);
        let (width, parts, form) = (self.width, self.norm.parts.len(), self.form());
        let (pieces, rows) = small_pieces(width, x_layout.shape().dims()[0], &self.norm.parts);
        let inputs = [(width, Numbers::new(x, x_layout)?)];
        let y = map(x.dtype(), inputs, (width, &rows), |i, [x], y| {
            let (gain, offset) = (pieces[i].row(&gain, parts, width), pieces[i].row(&offset, parts, width));
            forward(x, gain, offset, y, form);
        })?;
        Ok((y, x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        gain: &candle_core::CudaStorage,
        gain_layout: &Layout,
        offset: &candle_core::CudaStorage,
        offset_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.forward_on((x, x_layout), (gain, gain_layout), (offset, offset_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        offset: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.back_on(x, gain, offset, &grad.contiguous()?);
        }
        let batch = x.dims()[0];
        let (mut dx, mut tables, grad) = (None, None, grad.contiguous()?);
        if x.track_op() {
            dx = Some(numbers_of([gain], |[gain]| self.back(x, gain, &grad))??);
        }
        if gain.track_op() || offset.track_op() {
            tables = Some(numbers_of([x, &grad], |[x, grad]| self.tables(batch, x, grad))?);
        }
        // The gradient of a table shared by all samples is the sum over them.
        let table = |numbers: Vec<f32>, like: &Tensor| {
            let all = Tensor::from_vec(numbers, (batch, self.norm.parts.len(), self.width), like.device())?;
            if like.dim(0)? == batch {
                Ok(all)
            } else {
                all.sum_keepdim(0)
            }
        };
        let (dgain, doffset) = match tables {
            Some((dgain, doffset)) => (Some(table(dgain, gain)?), Some(table(doffset, offset)?)),
            None => (None, None),
        };
        Ok((
            dx,
            dgain.filter(|_| gain.track_op()),
            doffset.filter(|_| offset.track_op()),
        ))
    }
}

impl NormOp {
    fn form(&self) -> NormSpec {
        NormSpec {
            kind: self.norm.kind,
            eps: self.norm.eps as f32,
        }
    }

    /// Returns the gradient of x.
    fn back(&self, x: &Tensor, gain: &[f32], grad: &Tensor) -> Result<Tensor> {
        let (width, parts, form) = (self.width, self.norm.parts.len(), self.form());
        let (pieces, rows) = small_pieces(width, x.dims()[0], &self.norm.parts);
        map_like(x, [(width, x), (width, grad)], (width, &rows), |i, [x, grad], dx| {
            back(x, pieces[i].row(gain, parts, width), grad, dx, form);
        })
    }

    /// Returns the gradients of gain and offset, (B, P, D) both.
    fn tables(&self, batch: usize, x: &[f32], grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (width, parts, form) = (self.width, self.norm.parts.len(), self.form());
        let pieces = pieces(batch, &self.norm.parts);
        let of_pieces = pieces.par_iter().map(|piece| {
            let (mut dgain, mut doffset) = (vec![0.0; width], vec![0.0; width]);
            table_sums(
                piece.of(x, width),
                piece.of(grad, width),
                &mut dgain,
                &mut doffset,
                form,
            );
            (dgain, doffset)
        });
        let size = batch * parts * width;
        let (mut dgain, mut doffset) = (vec![0.0; size], vec![0.0; size]);
        compute(|| {
            let of_pieces: Vec<(Vec<f32>, Vec<f32>)> = of_pieces.collect();
            for (piece, (of_gain, of_offset)) in pieces.iter().zip(&of_pieces) {
                let at = piece.at(size, parts, width);
                for i in 0..width {
                    dgain[at + i] += of_gain[i];
                    doffset[at + i] += of_offset[i];
                }
            }
        });
        (dgain, doffset)
    }
}

/// Statistics that rows are normalised by.
#[derive(Debug, Clone, Copy)]
struct NormSpec {
    kind: NormKind,
    eps: f32,
}

/// Returns the mean (0 for the RMS norm) and 1 / sqrt(variance + eps) of a row.
#[inline(always)]
fn moments(x: &[f32], form: NormSpec) -> (f32, f32) {
    let count = x.len() as f32;
    let (whole, rest) = x.as_chunks::<LANES>();
    let mean = match form.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => {
            let mut lanes = [0f32; LANES];
            for chunk in whole {
                for lane in 0..LANES {
                    lanes[lane] += chunk[lane];
                }
            }
            (sum(lanes) + rest.iter().sum::<f32>()) / count
        }
    };
    let mut lanes = [0f32; LANES];
    for chunk in whole {
        for lane in 0..LANES {
            let centred = chunk[lane] - mean;
            lanes[lane] = centred.mul_add(centred, lanes[lane]);
        }
    }
    let rest: f32 = rest.iter().map(|x| (x - mean) * (x - mean)).sum();
    let variance = (sum(lanes) + rest) / count;
    (mean, 1.0 / (variance + form.eps).sqrt())
}

wide! {
    /// Normalises rows of one part.
    fn forward(x: &[f32], gain: &[f32], offset: &[f32], y: &mut [f32], form: NormSpec) {
        for (x, y) in x.chunks_exact(gain.len()).zip(y.chunks_exact_mut(gain.len())) {
            let (mean, inverse) = moments(x, form);
            for (((y, x), gain), offset) in y.iter_mut().zip(x).zip(gain).zip(offset) {
                *y = ((x - mean) * inverse).mul_add(*gain, *offset);
            }
        }
    }
}

wide! {
    /// Writes dx of rows of one part.
    fn back(x: &[f32], gain: &[f32], grad: &[f32], dx: &mut [f32], form: NormSpec) {
        let width = gain.len();
        let rows = x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for ((x, grad), dx) in rows {
            let (mean, inverse) = moments(x, form);
            let (plain, along) = means(x, gain, grad, mean, inverse);
            let plain = match form.kind {
                NormKind::Layer => plain,
                NormKind::Rms => 0.0,
            };
            for (((dx, x), grad), gain) in dx.iter_mut().zip(x).zip(grad).zip(gain) {
                let normed = (x - mean) * inverse;
                *dx = (grad * gain - plain - normed * along) * inverse;
            }
        }
    }
}

/// Returns mean(h) and mean(h n) of a row, with h = dy g.
#[inline(always)]
fn means(x: &[f32], gain: &[f32], grad: &[f32], mean: f32, inverse: f32) -> (f32, f32) {
    let (mut plain, mut along) = ([0f32; LANES], [0f32; LANES]);
    let whole = x.len() / LANES * LANES;
    for from in (0..whole).step_by(LANES) {
        let (x, grad, gain) = (
            &x[from..from + LANES],
            &grad[from..from + LANES],
            &gain[from..from + LANES],
        );
        for lane in 0..LANES {
            let h = grad[lane] * gain[lane];
            plain[lane] += h;
            along[lane] = (h * inverse).mul_add(x[lane] - mean, along[lane]);
        }
    }
    let (mut plain, mut along) = (sum(plain), sum(along));
    for i in whole..x.len() {
        let h = grad[i] * gain[i];
        plain += h;
        along += h * inverse * (x[i] - mean);
    }
    let count = x.len() as f32;
    (plain / count, along / count)
}

wide! {
    /// Accumulates the gradients of gain and offset over rows of one part.
    fn table_sums(x: &[f32], grad: &[f32], dgain: &mut [f32], doffset: &mut [f32], form: NormSpec) {
        for (x, grad) in x.chunks_exact(dgain.len()).zip(grad.chunks_exact(dgain.len())) {
            let (mean, inverse) = moments(x, form);
            for (((x, grad), dgain), doffset) in x.iter().zip(grad).zip(dgain.iter_mut()).zip(doffset.iter_mut()) {
                *dgain += grad * (x - mean) * inverse;
                *doffset += grad;
            }
        }
    }
}
