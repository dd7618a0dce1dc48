//! Launches of norm.cu.

use candle_core::{DType, Result};

use super::{Norm, NormKind};
use crate::ops::kernel::rows::Rows;
use crate::ops::kernel::{Address, Argument, Grid, Launch, WARP, aligned};

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
        let parts = self.rows.parts(samples).into();
        if let Some(lanes) = self.lanes(aligned, &[gain, offset]) {
            let [rows, lanes_given] = [self.rows.count(), lanes].map(|count| Argument::from(count as i32));
            let tensors = [x, gain, offset, y].map(Argument::from);
            let arguments = tensors.into_iter().chain([rows, lanes_given, layer, eps, parts]);
            return self.launch_narrow("norm_narrow_forward", lanes, arguments.collect());
        }
        let arguments = vec![
            x.into(),
            gain.into(),
            offset.into(),
            y.into(),
            width,
            layer,
            eps,
            aligned.into(),
            parts,
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
        let parts = self.rows.parts(samples).into();
        if let Some(lanes) = self.lanes(aligned, &[gain]) {
            let [rows, lanes_given] = [self.rows.count(), lanes].map(|count| Argument::from(count as i32));
            let tensors = [x, gain, grad, dx].map(Argument::from);
            let arguments = tensors.into_iter().chain([rows, lanes_given, layer, eps, parts]);
            return self.launch_narrow("norm_narrow_back", lanes, arguments.collect());
        }
        let arguments = vec![
            x.into(),
            gain.into(),
            grad.into(),
            dx.into(),
            width,
            layer,
            eps,
            aligned.into(),
            parts,
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

    /// Returns the threads of a row that is read in packs of 16 bytes, each by a thread of the same warp; None if they are no power
    /// of two, or tables are not aligned as well.
    fn lanes(&self, aligned: bool, tables: &[Address]) -> Option<usize> {
        let Rows { width, dtype, .. } = self.rows;
        let lanes = width * dtype.size_in_bytes() / 16;
        let tables_aligned = tables.iter().all(|table| table % 16 == 0);
        (aligned && tables_aligned && lanes.is_power_of_two() && lanes <= WARP).then_some(lanes)
    }

    /// Launch with several rows per block.
    fn launch_narrow(&self, kernel: &str, lanes: usize, arguments: Vec<Argument>) -> Result<Launch> {
        const THREADS: usize = 256;
        let grid = Grid {
            blocks: [(self.rows.count() * lanes).div_ceil(THREADS), 1, 1],
            threads: THREADS,
            shared: 0,
        };
        Launch::of_type(kernel, self.rows.dtype, grid, arguments)
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
