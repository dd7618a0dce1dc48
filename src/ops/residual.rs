//! Residual connections with a gate for each part of a sequence: `y = x + g u`. arXiv:2212.09748
//!
//! ```text
//! dx = dy      du = g dy      dg = sum of dy u over the rows of a part
//! ```
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
use super::simd_math::wide;
use super::tape::{Reads, apply3};
use crate::process::allocations::compute;

/// Gated residual of x and update (B, R, D), gate (B or 1, P, D) -> (B, R, D). `parts` are the rows of each part,
/// together R.
///
/// # Errors
/// Fails for shapes that do not fit the parts; on the CPU, for types other than f32 and bf16.
pub fn gated_residual(x: &Tensor, update: &Tensor, gate: &Tensor, parts: &[usize]) -> Result<Tensor> {
    let (batch, rows, width) = x.dims3()?;
    if update.dims() != x.dims() || parts.iter().sum::<usize>() != rows {
        candle_core::bail!("{:?} + a gate for {parts:?} rows x {:?}", x.dims(), update.dims());
    }
    check("a gate", gate, batch, parts, width)?;
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let update = update.to_dtype(x.dtype())?;
    if !has_kernels(x) || !suits(x, parts) {
        return reference(x, &update, &gate.to_dtype(x.dtype())?, parts);
    }
    let gate = gate.to_dtype(DType::F32)?.contiguous()?;
    let op = Gated { parts: parts.to_vec() };
    let reads = Reads {
        inputs: [false, gate.track_op(), true], // the update is needed only for a trained gate
        output: false,
    };
    apply3([&x.contiguous()?, &update.contiguous()?, &gate], op, reads)
}

/// Reference in candle's own operations: for other devices.
///
/// # Errors
/// Same as [`gated_residual`].
pub fn reference(x: &Tensor, update: &Tensor, gate: &Tensor, parts: &[usize]) -> Result<Tensor> {
    let mut first = 0;
    let mut gated = Vec::new();
    for (part, rows) in parts.iter().enumerate() {
        gated.push(
            update
                .narrow(1, first, *rows)?
                .broadcast_mul(&gate.narrow(1, part, 1)?)?,
        );
        first += rows;
    }
    x + Tensor::cat(&gated, 1)?
}

struct Gated {
    parts: Vec<usize>,
}

impl CustomOp3 for Gated {
    fn name(&self) -> &'static str {
        "gated-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        update: &CpuStorage,
        update_layout: &Layout,
        gate: &CpuStorage,
        gate_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, _, width) = x_layout.shape().dims3()?;
        let inputs = [
            (width, Numbers::new(x, x_layout)?),
            (width, Numbers::new(update, update_layout)?),
        ];
        let gate = f32_view(gate, gate_layout)?;
        let (pieces, rows) = small_pieces(width, batch, &self.parts);
        let y = map(x.dtype(), inputs, (width, &rows), |i, [x, update], y| {
            forward(x, update, pieces[i].row(&gate, self.parts.len(), width), y);
        })?;
        Ok((y, x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        update: &candle_core::CudaStorage,
        update_layout: &Layout,
        gate: &candle_core::CudaStorage,
        gate_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.forward_on((x, x_layout), (update, update_layout), (gate, gate_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        update: &Tensor,
        gate: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.back_on(x, update, gate, &grad.contiguous()?);
        }
        let (batch, _, width) = x.dims3()?;
        let (mut dupdate, mut dgate) = (None, None);
        let contiguous = grad.contiguous()?;
        if update.track_op() {
            let back = |[gate]: [&[f32]; 1]| self.back(batch, x, gate, &contiguous);
            dupdate = Some(numbers_of([gate], back)??);
        }
        if gate.track_op() {
            let sums = |[update, grad]: [&[f32]; 2]| self.sums(batch, width, update, grad, gate.elem_count());
            dgate = Some(numbers_of([update, &contiguous], sums)?);
        }
        let dgate = dgate.map(|dgate| Tensor::from_vec(dgate, gate.dims(), x.device()));
        Ok((x.track_op().then(|| grad.clone()), dupdate, dgate.transpose()?))
    }
}

impl Gated {
    /// Returns the gradient of the update, which is like x.
    fn back(&self, batch: usize, x: &Tensor, gate: &[f32], grad: &Tensor) -> Result<Tensor> {
        let width = x.dim(D::Minus1)?;
        let (pieces, rows) = small_pieces(width, batch, &self.parts);
        map_like(x, [(width, grad)], (width, &rows), |i, [grad], dupdate| {
            back(grad, pieces[i].row(gate, self.parts.len(), width), dupdate);
        })
    }

    /// Returns the gradient of a gate of `size` numbers.
    fn sums(&self, batch: usize, width: usize, update: &[f32], grad: &[f32], size: usize) -> Vec<f32> {
        let pieces = pieces(batch, &self.parts);
        let of_pieces = pieces.par_iter().map(|piece| {
            let mut dgate = vec![0.0; width];
            gate_sums(piece.of(update, width), piece.of(grad, width), &mut dgate);
            dgate
        });
        let mut dgate = vec![0.0; size];
        compute(|| {
            let of_pieces: Vec<Vec<f32>> = of_pieces.collect();
            for (piece, of_piece) in pieces.iter().zip(&of_pieces) {
                let at = piece.at(size, self.parts.len(), width);
                for (dgate, of_piece) in dgate[at..].iter_mut().zip(of_piece) {
                    *dgate += of_piece;
                }
            }
        });
        dgate
    }
}

wide! {
    /// Adds the gated update to rows of one part.
    fn forward(x: &[f32], update: &[f32], gate: &[f32], y: &mut [f32]) {
        let width = gate.len();
        let rows = x.chunks_exact(width).zip(update.chunks_exact(width)).zip(y.chunks_exact_mut(width));
        for ((x, update), y) in rows {
            for (((y, x), update), gate) in y.iter_mut().zip(x).zip(update).zip(gate) {
                *y = gate.mul_add(*update, *x);
            }
        }
    }
}

wide! {
    /// Writes du of rows of one part.
    fn back(grad: &[f32], gate: &[f32], dupdate: &mut [f32]) {
        for (grad, dupdate) in grad.chunks_exact(gate.len()).zip(dupdate.chunks_exact_mut(gate.len())) {
            for ((dupdate, grad), gate) in dupdate.iter_mut().zip(grad).zip(gate) {
                *dupdate = grad * gate;
            }
        }
    }
}

wide! {
    /// Accumulates the gate's gradient over rows of one part.
    fn gate_sums(update: &[f32], grad: &[f32], dgate: &mut [f32]) {
        for (update, grad) in update.chunks_exact(dgate.len()).zip(grad.chunks_exact(dgate.len())) {
            for ((dgate, update), grad) in dgate.iter_mut().zip(update).zip(grad) {
                *dgate = update.mul_add(*grad, *dgate);
            }
        }
    }
}
