//! Launches of residual.cu.

use candle_core::Result;

use crate::ops::kernel::rows::Rows;
use crate::ops::kernel::{Address, Grid, Launch, aligned};

/// Launch computing y = x + g u, for a gate of `samples` samples (B or 1).
///
/// # Errors
/// Fails for types other than f32 and bf16.
pub fn forward(rows: Rows, [x, update]: [Address; 2], gate: Address, samples: usize, y: Address) -> Result<Launch> {
    let aligned = aligned(rows.width, rows.dtype, &[x, update, y]);
    let arguments = vec![
        x.into(),
        update.into(),
        gate.into(),
        y.into(),
        (rows.width as i32).into(),
        aligned.into(),
        rows.parts(samples).into(),
    ];
    let grid = Grid::rows(rows.count(), rows.width, rows.dtype, aligned);
    Launch::of_type("residual_forward", rows.dtype, grid, arguments)
}

/// Launch computing du = g dy, for a gate of `samples` samples (B or 1).
///
/// # Errors
/// Fails for types other than f32 and bf16.
pub fn back(rows: Rows, grad: Address, gate: Address, samples: usize, dupdate: Address) -> Result<Launch> {
    let aligned = aligned(rows.width, rows.dtype, &[grad, dupdate]);
    let arguments = vec![
        grad.into(),
        gate.into(),
        dupdate.into(),
        (rows.width as i32).into(),
        aligned.into(),
        rows.parts(samples).into(),
    ];
    let grid = Grid::rows(rows.count(), rows.width, rows.dtype, aligned);
    Launch::of_type("residual_back", rows.dtype, grid, arguments)
}

/// Launch computing the gate's gradient in [`Rows::slices`] sums: (B, P, slices, D), f32.
///
/// # Errors
/// Fails for types other than f32 and bf16.
pub fn gate(rows: Rows, update: Address, grad: Address, dgate: Address) -> Result<Launch> {
    let arguments = vec![
        update.into(),
        grad.into(),
        dgate.into(),
        (rows.width as i32).into(),
        rows.parts(rows.batch).into(),
    ];
    Launch::of_type("residual_gate", rows.dtype, rows.sums(), arguments)
}
