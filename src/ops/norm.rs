//! Normalisation over the last axis with a gain and an offset for each part of a sequence: layer norm and RMS norm, plain
//! or modulated by the timestep.
//!
//! ```text
//! layer norm  n = (x - mean(x)) / sqrt(var(x) + eps)      RMS norm  n = x / sqrt(mean(x^2) + eps)
//! y = n g + o
//! dx = (h - mean(h) - n mean(h n)) / sqrt(...) with h = dy g; without mean(h) for the RMS norm
//! dg = sum of dy n, do = sum of dy, over the rows of a part
//! ```
//!
//! A plain norm has g = weight and o = bias; one that is modulated has g = weight (1 + scale), o = bias (1 + scale) + shift,
//! which are small enough for candle to compute and to differentiate.
//!
//! Shapes: B samples, R rows of a sample, P parts, D features.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::slices::{numbers_of, stored, widened};
use super::wide::{LANES, sum, wide};

/// Rows that one thread takes at a time; also those that are summed up together.
const ROWS: usize = 64;

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Layer,
    Rms,
}

/// A norm over the last axis.
#[derive(Debug, Clone)]
pub struct Norm {
    pub kind: Kind,
    pub eps: f64,
    /// How many rows of a sample belong to each part, one part behind the other. Together they are all rows.
    pub parts: Vec<usize>,
}

impl Norm {
    /// x (B, ..., D), gain and offset (B or 1, P, D) -> (B, ..., D)
    pub fn forward(&self, x: &Tensor, gain: &Tensor, offset: &Tensor) -> Result<Tensor> {
        let (batch, width) = (x.dim(0)?, x.dim(D::Minus1)?);
        let rows: usize = self.parts.iter().sum();
        if x.elem_count() != batch * rows * width {
            candle_core::bail!("a norm over {:?} rows of {width} was given {:?}", self.parts, x.dims());
        }
        for (name, tensor) in [("gain", gain), ("offset", offset)] {
            let (samples, parts, features) = tensor.dims3()?;
            if (samples != 1 && samples != batch) || parts != self.parts.len() || features != width {
                candle_core::bail!("a norm of {:?} was given the {name} {:?}", x.dims(), tensor.dims());
            }
        }
        if !x.device().is_cpu() {
            return self.composed(x, gain, offset);
        }
        let (gain, offset) = (gain.to_dtype(DType::F32)?, offset.to_dtype(DType::F32)?);
        let op = NormOp {
            norm: self.clone(),
            width,
        };
        x.contiguous()?
            .apply_op3(&gain.contiguous()?, &offset.contiguous()?, op)
    }

    /// The same in candle's operations, for other devices.
    fn composed(&self, x: &Tensor, gain: &Tensor, offset: &Tensor) -> Result<Tensor> {
        let (batch, width) = (x.dim(0)?, x.dim(D::Minus1)?);
        let wide = x.reshape((batch, (), width))?.to_dtype(DType::F32)?; // (B, R, D)
        let centred = match self.kind {
            Kind::Layer => wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?,
            Kind::Rms => wide,
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

    /// Cuts the rows of all samples into pieces of one part each: sample, part, first row, rows.
    fn pieces(&self, batch: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut first = 0;
        for sample in 0..batch {
            for (part, rows) in self.parts.iter().enumerate() {
                for from in (0..*rows).step_by(ROWS) {
                    let rows = ROWS.min(rows - from);
                    pieces.push(Piece {
                        sample,
                        part,
                        first,
                        rows,
                    });
                    first += rows;
                }
            }
        }
        pieces
    }
}

/// Some rows that share gain and offset.
#[derive(Debug, Clone, Copy)]
struct Piece {
    sample: usize,
    part: usize,
    first: usize,
    rows: usize,
}

impl Piece {
    /// Where its gain stands in a table (B or 1, P, D).
    fn at(&self, table: &[f32], parts: usize, width: usize) -> usize {
        let shared = table.len() == parts * width;
        (if shared { 0 } else { self.sample * parts } + self.part) * width
    }
}

/// Cuts `numbers` at the pieces, which cover it.
fn cut<'a>(mut numbers: &'a mut [f32], pieces: &[Piece], width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (part, rest) = numbers.split_at_mut(piece.rows * width);
        parts.push(part);
        numbers = rest;
    }
    parts
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
        let (numbers, gain, offset) = (
            widened(x, x_layout)?,
            widened(gain, gain_layout)?,
            widened(offset, offset_layout)?,
        );
        let (width, parts) = (self.width, self.norm.parts.len());
        let (kind, eps) = (self.norm.kind, self.norm.eps as f32);
        let mut y = vec![0.0; numbers.len()];
        let pieces = self.norm.pieces(x_layout.shape().dims()[0]);
        let places = cut(&mut y, &pieces, width);
        pieces.par_iter().zip(places).for_each(|(piece, y)| {
            let (gain, offset) = (
                &gain[piece.at(&gain, parts, width)..][..width],
                &offset[piece.at(&offset, parts, width)..][..width],
            );
            let x = &numbers[piece.first * width..][..y.len()];
            for (x, y) in x.chunks(width).zip(y.chunks_mut(width)) {
                row_forward(x, gain, offset, y, kind, eps);
            }
        });
        Ok((stored(y, x.dtype())?, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        offset: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let learns = gain.track_op() || offset.track_op();
        let (dx, dgain, doffset) = numbers_of([x, gain, &grad.contiguous()?], |[x_numbers, gain_numbers, grad]| {
            self.back(x.dims()[0], x_numbers, gain_numbers, grad, learns)
        })?;
        let dx = Tensor::from_vec(dx, x.dims(), x.device())?.to_dtype(x.dtype())?;
        if !learns {
            return Ok((Some(dx), None, None));
        }
        let table = |numbers: Vec<f32>| Tensor::from_vec(numbers, gain.dims(), gain.device());
        Ok((Some(dx), Some(table(dgain)?), Some(table(doffset)?)))
    }
}

impl NormOp {
    /// Gradients of x, and of the tables where they are wanted.
    fn back(
        &self,
        batch: usize,
        x: &[f32],
        gain: &[f32],
        grad: &[f32],
        learns: bool,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (width, parts) = (self.width, self.norm.parts.len());
        let (kind, eps) = (self.norm.kind, self.norm.eps as f32);
        let mut dx = vec![0.0; x.len()];
        let pieces = self.norm.pieces(batch);
        let places = cut(&mut dx, &pieces, width);
        let sums: Vec<(Vec<f32>, Vec<f32>)> = pieces
            .par_iter()
            .zip(places)
            .map(|(piece, dx)| {
                let gain = &gain[piece.at(gain, parts, width)..][..width];
                let from = piece.first * width;
                let (x, grad) = (&x[from..][..dx.len()], &grad[from..][..dx.len()]);
                let table = if learns { width } else { 0 };
                let (mut dgain, mut doffset) = (vec![0.0; table], vec![0.0; table]);
                for ((x, grad), dx) in x.chunks(width).zip(grad.chunks(width)).zip(dx.chunks_mut(width)) {
                    let (mean, spread) = row_back(x, gain, grad, dx, kind, eps);
                    if learns {
                        row_sums(x, grad, mean, spread, &mut dgain, &mut doffset);
                    }
                }
                (dgain, doffset)
            })
            .collect();
        let size = if learns { gain.len() } else { 0 };
        let (mut dgain, mut doffset) = (vec![0.0; size], vec![0.0; size]);
        if learns {
            for (piece, sums) in pieces.iter().zip(&sums) {
                let at = piece.at(gain, parts, width);
                for i in 0..width {
                    dgain[at + i] += sums.0[i];
                    doffset[at + i] += sums.1[i];
                }
            }
        }
        (dx, dgain, doffset)
    }
}

/// Mean (0 for the RMS norm) and 1 / sqrt(variance + eps) of a row.
#[inline(always)]
fn moments(x: &[f32], kind: Kind, eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let (whole, rest) = x.as_chunks::<LANES>();
    let mean = match kind {
        Kind::Rms => 0.0,
        Kind::Layer => {
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
    (mean, 1.0 / (variance + eps).sqrt())
}

wide! {
    fn row_forward(x: &[f32], gain: &[f32], offset: &[f32], y: &mut [f32], kind: Kind, eps: f32) {
        let (mean, inverse) = moments(x, kind, eps);
        for (((y, x), gain), offset) in y.iter_mut().zip(x).zip(gain).zip(offset) {
            *y = ((x - mean) * inverse).mul_add(*gain, *offset);
        }
    }
}

wide! {
    /// Writes dx; returns the row's mean and 1 / sqrt(variance + eps).
    fn row_back(x: &[f32], gain: &[f32], grad: &[f32], dx: &mut [f32], kind: Kind, eps: f32) -> (f32, f32) {
        let (mean, inverse) = moments(x, kind, eps);
        let count = x.len() as f32;
        let (mut plain, mut along) = ([0f32; LANES], [0f32; LANES]);
        let whole = x.len() / LANES * LANES;
        for from in (0..whole).step_by(LANES) {
            let (x, grad, gain) = (&x[from..from + LANES], &grad[from..from + LANES], &gain[from..from + LANES]);
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
        let plain = match kind {
            Kind::Layer => plain / count,
            Kind::Rms => 0.0,
        };
        let along = along / count;
        for (((dx, x), grad), gain) in dx.iter_mut().zip(x).zip(grad).zip(gain) {
            let normed = (x - mean) * inverse;
            *dx = (grad * gain - plain - normed * along) * inverse;
        }
        (mean, inverse)
    }
}

wide! {
    /// Adds what a row says of its gain and offset.
    fn row_sums(x: &[f32], grad: &[f32], mean: f32, inverse: f32, dgain: &mut [f32], doffset: &mut [f32]) {
        for (((x, grad), dgain), doffset) in x.iter().zip(grad).zip(dgain).zip(doffset) {
            *dgain += grad * (x - mean) * inverse;
            *doffset += grad;
        }
    }
}
