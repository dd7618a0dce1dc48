//! Processing of a large frame in overlapping tiles with blended seams.
//!
//! Tiles start every `int(size * (1 - overlap))` in the input; in the output, the first `int(size * overlap)` rows of a
//! tile are blended from the tile above into it (columns likewise), and each tile contributes all but the last of as
//! many. Same as diffusers' `tiled_encode` and `tiled_decode`, so the result differs from a whole frame's.

use candle_core::{Result, Tensor, bail};

/// Size of a tile in pixels, and its overlap with the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tiling {
    /// Minimum rows of a tile, in pixels.
    pub sample_min_height: usize,
    /// Minimum columns of a tile, in pixels.
    pub sample_min_width: usize,
    /// Share of a tile's rows that overlaps the next.
    pub overlap_factor_height: f64,
    /// Share of a tile's columns that overlaps the next.
    pub overlap_factor_width: f64,
}

impl Tiling {
    /// Tiles that `enable_tiling()` chooses for a model of this sample size.
    pub fn for_sample(height: usize, width: usize) -> Self {
        Self {
            sample_min_height: height / 2,
            sample_min_width: width / 2,
            overlap_factor_height: 1.0 / 6.0,
            overlap_factor_width: 1.0 / 5.0,
        }
    }

    /// Checks that tiles of pixels and of latents line up, as for published checkpoints. Otherwise rows are repeated or
    /// missing, and the last tile may be too small to encode.
    pub fn lines_up(&self, compression: usize) -> bool {
        let Grid { height, width } = self.encoding(compression);
        [height, width]
            .iter()
            .all(|axis| axis.stride > 0 && axis.stride == axis.keep * compression)
    }

    /// Grid for encoding: tiles of pixels in, tiles of latents out.
    pub fn encoding(&self, compression: usize) -> Grid {
        self.grid(|side| [side, side / compression])
    }

    /// Grid for decoding: tiles of latents in, tiles of pixels out.
    pub fn decoding(&self, compression: usize) -> Grid {
        self.grid(|side| [side / compression, side])
    }

    /// Grid whose tiles have the input and output size `sizes(side)` for a tile's side in pixels.
    fn grid(&self, sizes: impl Fn(usize) -> [usize; 2]) -> Grid {
        let axis = |side, overlap: f64| {
            let [input, output] = sizes(side);
            let blend = (output as f64 * overlap) as usize;
            Axis {
                size: input,
                stride: (input as f64 * (1.0 - overlap)) as usize,
                blend,
                keep: output.saturating_sub(blend),
            }
        };
        Grid {
            height: axis(self.sample_min_height, self.overlap_factor_height),
            width: axis(self.sample_min_width, self.overlap_factor_width),
        }
    }
}

/// Layout of the tiles.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    height: Axis,
    width: Axis,
}

#[derive(Debug, Clone, Copy)]
struct Axis {
    /// Size of an input tile, and distance between tiles.
    size: usize,
    stride: usize,
    /// Blended part of an output tile, and the part that is kept.
    blend: usize,
    keep: usize,
}

impl Grid {
    /// Checks whether a frame is too large for one tile.
    pub fn splits(&self, height: usize, width: usize) -> bool {
        height > self.height.size || width > self.width.size
    }

    /// Processes x (B, C, F, H, W) tile by tile.
    pub fn code(&self, x: &Tensor, mut code: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (height, width) = (x.dim(3)?, x.dim(4)?);
        if self.height.stride == 0 || self.width.stride == 0 || self.height.keep == 0 || self.width.keep == 0 {
            bail!("tiles are too small or overlap too much: {self:?}");
        }
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in (0..height).step_by(self.height.stride) {
            let mut blended: Vec<Tensor> = Vec::new();
            let mut kept = Vec::new();
            for (column, left) in (0..width).step_by(self.width.stride).enumerate() {
                let tile = x.narrow(3, top, self.height.size.min(height - top))?.narrow(
                    4,
                    left,
                    self.width.size.min(width - left),
                )?;
                let mut tile = code(&tile)?;
                if let Some(above) = above.get(column) {
                    tile = blend(above, &tile, 3, self.height.blend)?;
                }
                if let Some(before) = blended.last() {
                    tile = blend(before, &tile, 4, self.width.blend)?;
                }
                let keep = (self.height.keep.min(tile.dim(3)?), self.width.keep.min(tile.dim(4)?));
                kept.push(tile.narrow(3, 0, keep.0)?.narrow(4, 0, keep.1)?);
                blended.push(tile);
            }
            rows.push(Tensor::cat(&kept, 4)?);
            above = blended;
        }
        Tensor::cat(&rows, 3)
    }
}

/// Returns `b`, its first `extent` entries along `dim` blended with the last of `a`.
fn blend(a: &Tensor, b: &Tensor, dim: usize, extent: usize) -> Result<Tensor> {
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
