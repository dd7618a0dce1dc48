//! Tiles of one size along frames, rows and columns, joined by linear ramps: `tiled_encode` and `tiled_decode` of
//! `AutoencoderKLAllegro`.
//!
//! A tile begins at every stride, and the last one ends with the clip. In its first `size - stride` entries along an axis a
//! tile takes over from what is there, the share i / (size - stride) of entry i. Axes are joined one by one, columns, rows,
//! frames, so that shares are multiplied.
//!
//! diffusers has tiles at every stride alone, and leaves what none of them covers at a constant. Where they cover the clip,
//! both agree. A clip that is shorter than a tile has one as long as itself, where diffusers has none.

use candle_core::{Error, Result, Tensor};

use super::tiles::{Axis, HeldOutputs, Tiles, blend};
use super::vae::Emitted;

/// Tiles along frames, rows and columns.
pub(super) struct Ramped {
    pub(super) axes: [Axis; 3],
}

impl Ramped {
    /// Processes x (B, C, F, H, W) tile by tile, emitting frames as they are ready.
    pub(super) fn code<E: From<Error>>(
        &self,
        x: &Tensor,
        mut code: impl FnMut(&Tensor) -> Result<Tensor>,
        mut emit: impl FnMut(Tensor) -> Emitted<E>,
    ) -> Emitted<E> {
        let mut seam = Seam::new(2, self.axes[0]);
        for (start, part) in parts(x, 2, self.axes[0].input)? {
            let frames = self.within(1, &part, &mut code)?;
            if let Some(ready) = seam.join(start, frames)? {
                emit(ready)?;
            }
        }
        match seam.rest() {
            Some(rest) => emit(rest),
            None => Ok(()),
        }
    }

    /// Processes x by the tiles along this axis and those after it.
    fn within(&self, axis: usize, x: &Tensor, code: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let Some(tiles) = self.axes.get(axis) else {
            return code(x);
        };
        let dim = axis + 2;
        let (mut seam, mut ready) = (Seam::new(dim, *tiles), Vec::new());
        for (start, part) in parts(x, dim, tiles.input)? {
            let part = self.within(axis + 1, &part, code)?;
            ready.extend(seam.join(start, part)?);
        }
        ready.extend(seam.rest());
        Tensor::cat(&ready, dim)
    }

    /// Returns the positions of the output that are held at most, for an input of this size; `finished` copies are made of
    /// the whole.
    pub(super) fn held_outputs(&self, input: [usize; 3], finished: u64) -> HeldOutputs {
        let [frames, rows, columns] = std::array::from_fn(|i| Extent::of(input[i], self.axes[i]));
        let tile = frames.tile.saturating_mul(rows.tile).saturating_mul(columns.tile);
        let strip = frames.tile.saturating_mul(rows.tile).saturating_mul(columns.whole);
        let all = frames.tile.saturating_mul(rows.whole).saturating_mul(columns.whole);
        // Frames are held until the next ones are joined with them, and so are rows and columns.
        let before = if frames.cut { all } else { 0 };
        let above = if rows.cut {
            strip + frames.tile.saturating_mul(rows.done).saturating_mul(columns.whole)
        } else {
            0
        };
        let left = if columns.cut {
            tile + frames.tile.saturating_mul(rows.tile).saturating_mul(columns.done)
        } else {
            0
        };
        let joined = if rows.cut || columns.cut { 2 * all } else { all };
        HeldOutputs {
            working: before + above + left,
            joining: joined.max((1 + finished) * all) + 2 * before,
        }
    }
}

/// Lengths of the output along an axis.
struct Extent {
    whole: u64,
    tile: u64,
    /// Part that is finished when the last tile is processed.
    done: u64,
    cut: bool,
}

impl Extent {
    fn of(length: usize, Axis { input, output }: Axis) -> Self {
        let of = |length: usize| (length as u64).saturating_mul(output.size as u64) / input.size.max(1) as u64;
        Self {
            whole: of(length),
            tile: of(input.size.min(length)),
            done: of(length.saturating_sub(input.size)),
            cut: length > input.size,
        }
    }
}

/// Returns the tiles of x along an axis, with their beginnings.
fn parts(x: &Tensor, dim: usize, Tiles { size, stride }: Tiles) -> Result<Vec<(usize, Tensor)>> {
    let length = x.dim(dim)?;
    let last = length.saturating_sub(size);
    let starts = (0..last).step_by(stride.max(1)).chain([last]);
    starts
        .map(|start| Ok((start, x.narrow(dim, start, size.min(length))?)))
        .collect()
}

/// End of the parts of an output that are joined so far, along an axis.
struct Seam {
    dim: usize,
    axis: Axis,
    /// Last part, with its beginning in the output.
    held: Option<(usize, Tensor)>,
}

impl Seam {
    fn new(dim: usize, axis: Axis) -> Self {
        let held = None;
        Self { dim, axis, held }
    }

    /// Joins a part whose tile begins here in the input, and returns what no later part changes.
    fn join(&mut self, start: usize, part: Tensor) -> Result<Option<Tensor>> {
        let Axis { input, output } = self.axis;
        let start = start * output.size / input.size.max(1);
        let Some((begin, held)) = self.held.take() else {
            self.held = Some((start, part));
            return Ok(None);
        };
        let finished = start - begin;
        let ramp = self.axis.blend().min(held.dim(self.dim)? - finished);
        let part = blend(&held.narrow(self.dim, finished, ramp)?, &part, self.dim, ramp)?;
        let ready = held.narrow(self.dim, 0, finished)?.force_contiguous()?;
        self.held = Some((start, part));
        Ok(Some(ready))
    }

    /// Returns the last part.
    fn rest(self) -> Option<Tensor> {
        self.held.map(|(_, part)| part)
    }
}
