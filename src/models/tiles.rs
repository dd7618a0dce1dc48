//! Tiles along one axis: their lengths and distances in a coder's input and output, and the blend of two that overlap.

use candle_core::{Result, Tensor};

/// Tiles along one axis, in pixels or frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiles {
    /// Length of a tile; a clip that is no longer is not cut.
    pub size: usize,
    /// Distance between the beginnings of neighbouring tiles.
    pub stride: usize,
}

impl Tiles {
    /// Tiles of a size, by their distance.
    pub const fn new(size: usize, stride: usize) -> Self {
        Self { size, stride }
    }

    /// Tiles of half of `side`, of which this share overlaps.
    pub(super) fn half(side: usize, overlap: f64) -> Self {
        let size = side / 2;
        Self::new(size, (size as f64 * (1.0 - overlap)) as usize)
    }

    /// Returns true if tiles of latents have whole sizes, too.
    pub(super) fn lines_up(self, compression: usize) -> bool {
        let whole = |length: usize| length > 0 && length.is_multiple_of(compression.max(1));
        whole(self.size) && whole(self.stride) && self.stride <= self.size
    }

    /// Returns tiles of latents.
    pub(super) fn divided(self, by: usize) -> Self {
        Self::new(self.size / by.max(1), self.stride / by.max(1))
    }
}

/// Tiles along an axis of the input, and of the output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub(super) input: Tiles,
    pub(super) output: Tiles,
}

impl Axis {
    /// Returns the part of an output tile that is blended.
    pub(super) fn blend(&self) -> usize {
        self.output.size.saturating_sub(self.output.stride)
    }
}

/// Positions of the output of tiles that are held at most.
#[derive(Debug, Clone, Copy)]
pub struct HeldOutputs {
    /// Beside a tile that is being processed: its own frames that are done, tiles before it in its row and in the row above,
    /// rows that are done.
    pub working: u64,
    /// While they are joined.
    pub joining: u64,
}

/// Returns `b`, its first `extent` entries along `dim` blended with the last of `a`.
pub(super) fn blend(a: &Tensor, b: &Tensor, dim: usize, extent: usize) -> Result<Tensor> {
    let (a_size, b_size) = (a.dim(dim)?, b.dim(dim)?);
    let extent = extent.min(a_size).min(b_size);
    if extent == 0 {
        return Ok(b.clone());
    }
    let mut shape = [1; 5];
    shape[dim] = extent;
    let weights = |of: &dyn Fn(f64) -> f64| {
        let weights: Vec<f32> = (0..extent).map(|i| of(i as f64 / extent as f64) as f32).collect();
        Tensor::from_vec(weights, &shape, b.device())?.to_dtype(b.dtype())
    };
    let from_a = a
        .narrow(dim, a_size - extent, extent)?
        .broadcast_mul(&weights(&|w| 1.0 - w)?)?;
    let from_b = b.narrow(dim, 0, extent)?.broadcast_mul(&weights(&|w| w)?)?;
    Tensor::cat(&[(from_a + from_b)?, b.narrow(dim, extent, b_size - extent)?], dim)
}
