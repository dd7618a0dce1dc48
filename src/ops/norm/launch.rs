//! Launches of norm.cu.

use candle_core::{DType, Result};

use super::{Norm, NormKind};
use crate::ops::kernel::rows::Rows;
use crate::ops::kernel::{Address, Argument, Grid, Launch, aligned};

/// A norm over samples (B, R, D).
#[derive(Debug, Clone, Copy)]
pub struct Launches<'a> {
    norm: &'a Norm,
    /// Sizes and number format.
    pub rows: Rows<'a>,
}

impl Norm {
    /// Returns the launches for `batch` samples of `width` features.
    pub fn launches(&self, batch: usize, width: usize, dtype: DType) -> Launches<'_> {
        let rows = Rows {
            batch,
            parts: &self.parts,
            width,
            dtype,
        };
        Launches { norm: self, rows }
    }
}

impl Launches<'_> {
    /// Launch computing y = n g + o, for gain and offset of `samples` samples (B or 1).
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn forward(&self, x: Address, [gain, offset]: [Address; 2], samples: usize, y: Address) -> Result<Launch> {
        let aligned = aligned(self.rows.width, self.rows.dtype, &[x, y]);
        let [width, layer, eps] = self.form();
        let arguments = vec![
            x.into(),
            gain.into(),
            offset.into(),
            y.into(),
            width,
            layer,
            eps,
            aligned.into(),
            self.rows.parts(samples).into(),
        ];
        self.launch("norm_forward", aligned, arguments)
    }

    /// Launch computing dx, for a gain of `samples` samples (B or 1).
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn back(&self, x: Address, gain: Address, samples: usize, grad: Address, dx: Address) -> Result<Launch> {
        let aligned = aligned(self.rows.width, self.rows.dtype, &[x, grad, dx]);
        let [width, layer, eps] = self.form();
        let arguments = vec![
            x.into(),
            gain.into(),
            grad.into(),
            dx.into(),
            width,
            layer,
            eps,
            aligned.into(),
            self.rows.parts(samples).into(),
        ];
        self.launch("norm_back", aligned, arguments)
    }

    /// Launch computing the mean and 1 / sqrt(variance + eps) of each row: (B R, 2), f32.
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn moments(&self, x: Address, moments: Address) -> Result<Launch> {
        let [width, layer, eps] = self.form();
        let arguments = vec![x.into(), moments.into(), width, layer, eps];
        self.launch("norm_moments", false, arguments)
    }

    /// Launch computing the gradients of gain and offset in [`Rows::slices`] sums: (B, P, slices, D) each, f32.
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn tables(
        &self,
        x: Address,
        grad: Address,
        moments: Address,
        [dgain, doffset]: [Address; 2],
    ) -> Result<Launch> {
        let arguments = vec![
            x.into(),
            grad.into(),
            moments.into(),
            dgain.into(),
            doffset.into(),
            (self.rows.width as i32).into(),
            self.rows.parts(self.rows.batch).into(),
        ];
        Launch::of_type("norm_tables", self.rows.dtype, self.rows.sums(), arguments)
    }

    /// Launch with one block per row.
    fn launch(&self, kernel: &str, aligned: bool, arguments: Vec<Argument>) -> Result<Launch> {
        let Rows { width, dtype, .. } = self.rows;
        let grid = Grid::rows(self.rows.count(), width, dtype, aligned);
        Launch::of_type(kernel, dtype, grid, arguments)
    }

    /// Arguments: features, flag for subtracting the mean, and epsilon.
    fn form(&self) -> [Argument; 3] {
        let layer = self.norm.kind == NormKind::Layer;
        [
            (self.rows.width as i32).into(),
            layer.into(),
            (self.norm.eps as f32).into(),
        ]
    }
}
