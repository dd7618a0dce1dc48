//! Processing of a large clip in overlapping tiles with blended seams, as diffusers' `tiled_encode`, `tiled_decode` and
//! `_temporal_tiled_*` do: so the result differs from the whole clip's.
//!
//! Tiles are described in pixels, or frames, of the clip: one is `size` long, the next begins `stride` later. Both are
//! divided by the compression where latents are meant. In the output the first `size - stride` of a tile are blended from
//! the previous one into it, and each tile contributes `stride`. Tiles along the frames have one frame more, since the
//! first latent frame is a single frame; later tiles drop it. [`Seams::Ramps`] differ.

use candle_core::{Error, Result, Tensor, bail};

use super::ramps::Ramped;
use super::tiles::{Axis, HeldOutputs, blend};
use super::vae::Emitted;

pub use super::tiles::Tiles;

/// End of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The beginning.
    First,
    /// The end.
    Last,
}

/// Tiles along the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameTiles {
    /// Length and distance, without the additional frame.
    pub tiles: Tiles,
    /// End at which decoded tiles, but the first, drop a frame. Encoded ones drop their first latent frame.
    pub decoded: End,
}

/// Places of tiles, and the way they are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seams {
    /// Tiles begin at every stride, and what is left of a clip ends the last one. Each is blended with those before it, which
    /// are blended already.
    InTurn,
    /// All tiles have their whole size, along the frames too, and the last one ends with the clip.
    Ramps,
}

/// Clips that are cut into tiles, of those that are larger than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cuts {
    /// Those that settings of memory say.
    ByMemory,
    /// All of them, since the autoencoder knows nothing else.
    Always,
}

/// Tiles of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Tiles along the frames; if None, all of them pass together.
    pub frames: Option<FrameTiles>,
    /// Tiles along the rows.
    pub height: Tiles,
    /// Tiles along the columns.
    pub width: Tiles,
    /// True for the tiles of the family that was the first to have some: records of clips encoded in them say no more
    /// than that there were tiles.
    pub unnamed: bool,
    /// Places of tiles, and the way they are joined.
    pub seams: Seams,
    /// Clips that are cut.
    pub cuts: Cuts,
}

impl Tiling {
    /// Square tiles of whole clips, by their side and distance.
    pub const fn square(size: usize, stride: usize) -> Self {
        Self {
            frames: None,
            height: Tiles::new(size, stride),
            width: Tiles::new(size, stride),
            unnamed: false,
            seams: Seams::InTurn,
            cuts: Cuts::ByMemory,
        }
    }

    /// Tiles along frames, rows and columns, joined by ramps, of an autoencoder that knows nothing else.
    pub const fn always_ramps([frames, height, width]: [Tiles; 3]) -> Self {
        let decoded = End::First; // nothing is dropped
        Self {
            frames: Some(FrameTiles { tiles: frames, decoded }),
            height,
            width,
            unnamed: false,
            seams: Seams::Ramps,
            cuts: Cuts::Always,
        }
    }

    /// Tiles of half of a model's sample size, with overlaps of 1/6 of the rows and 1/5 of the columns.
    pub fn half_of_sample(height: usize, width: usize) -> Self {
        Self {
            frames: None,
            height: Tiles::half(height, 1.0 / 6.0),
            width: Tiles::half(width, 1.0 / 5.0),
            unnamed: true,
            ..Self::square(0, 0)
        }
    }

    /// Adds tiles along the frames.
    pub const fn with_frames(self, size: usize, stride: usize, decoded: End) -> Self {
        let tiles = Tiles::new(size, stride);
        Self {
            frames: Some(FrameTiles { tiles, decoded }),
            ..self
        }
    }

    /// Checks that tiles of the clip and of latents line up, as for published checkpoints. Otherwise rows are repeated or
    /// missing, and the last tile may be too small to encode.
    pub fn lines_up(&self, [time, space]: [usize; 2]) -> bool {
        let frames = self.frames.is_none_or(|frames| frames.tiles.lines_up(time));
        frames && self.height.lines_up(space) && self.width.lines_up(space)
    }

    /// Returns true if a clip of these frames, rows and columns is cut.
    pub fn splits(&self, [frames, height, width]: [usize; 3]) -> bool {
        let in_time = self.frames.is_some_and(|axis| frames > axis.tiles.size);
        in_time || height > self.height.size || width > self.width.size
    }

    /// Returns a name that says all about the tiles.
    pub fn name(&self) -> String {
        let Self { height, width, .. } = self;
        let frames = self.frames.map(|frames| {
            let FrameTiles { tiles, decoded } = frames;
            match self.seams {
                Seams::InTurn => format!("{}x, every {}x {decoded:?}, ", tiles.size, tiles.stride),
                Seams::Ramps => format!("{}x, every {}x with ramps, ", tiles.size, tiles.stride),
            }
        });
        let frames = frames.unwrap_or_default();
        format!(
            "{frames}{}x{}, every {}x{}",
            height.size, width.size, height.stride, width.stride
        )
    }

    /// Grid for encoding: tiles of pixels in, tiles of latents out.
    pub fn encoding(&self, compression: [usize; 2]) -> Grid {
        let time = Time::Shorter(compression[0]);
        self.grid(compression, time, End::First, |tiles, by| [tiles, tiles.divided(by)])
    }

    /// Grid for decoding: tiles of latents in, tiles of pixels out.
    pub fn decoding(&self, compression: [usize; 2]) -> Grid {
        let dropped = self.frames.map_or(End::First, |frames| frames.decoded);
        let time = Time::Longer(compression[0]);
        self.grid(compression, time, dropped, |tiles, by| [tiles.divided(by), tiles])
    }

    /// Grid whose tiles have these lengths in the input and in the output.
    fn grid(
        &self,
        [time, space]: [usize; 2],
        output: Time,
        dropped: End,
        lengths: impl Fn(Tiles, usize) -> [Tiles; 2],
    ) -> Grid {
        let axis = |tiles, by| {
            let [input, output] = lengths(tiles, by);
            Axis { input, output }
        };
        Grid {
            frames: self.frames.map(|frames| (axis(frames.tiles, time), dropped)),
            time: output,
            height: axis(self.height, space),
            width: axis(self.width, space),
            seams: self.seams,
        }
    }
}

/// Layout of the tiles of an input, and of what they become.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    frames: Option<(Axis, End)>,
    time: Time,
    height: Axis,
    width: Axis,
    seams: Seams,
}

/// Frames of an output by those of its input.
#[derive(Debug, Clone, Copy)]
enum Time {
    /// So many frames become one, and a clip has one more.
    Shorter(usize),
    /// One frame becomes so many, but the first.
    Longer(usize),
}

impl Time {
    fn of(self, frames: usize) -> usize {
        match self {
            Self::Shorter(by) => frames.div_ceil(by.max(1)),
            Self::Longer(by) => frames.saturating_sub(1) * by + 1,
        }
    }
}

impl Grid {
    /// Checks whether an input of these frames, rows and columns is too large for one tile: along the frames, and within
    /// them.
    pub fn splits(&self, [frames, height, width]: [usize; 3]) -> [bool; 2] {
        let in_time = self.frames.is_some_and(|(axis, _)| frames > axis.input.size);
        [
            in_time,
            height > self.height.input.size || width > self.width.input.size,
        ]
    }

    /// Returns the frames, rows and columns of the largest tile of an input of this size.
    pub fn largest(&self, [frames, height, width]: [usize; 3]) -> [usize; 3] {
        let together = self.frames.map_or(frames, |(axis, _)| match frames > axis.input.size {
            true if self.seams == Seams::Ramps => axis.input.size,
            true => frames.min(axis.input.size + 1),
            false => frames,
        });
        [
            together,
            self.height.input.size.min(height),
            self.width.input.size.min(width),
        ]
    }

    /// Returns the positions of the output that are held at most, for an input of this size; `finished` copies are made of
    /// the whole. A tile that comes in pieces is held while the rest of it is made.
    pub fn held_outputs(&self, [frames, height, width]: [usize; 3], finished: u64, in_pieces: bool) -> HeldOutputs {
        if let Some(ramped) = self.ramped() {
            return ramped.held_outputs([frames, height, width], finished);
        }
        let [together, rows, columns] = self.largest([frames, height, width]);
        let positions = |input: [usize; 3]| {
            let space = |length: usize, axis: Axis| length * axis.output.size / axis.input.size.max(1);
            let [frames, height, width] = input;
            [
                self.time.of(frames),
                space(height, self.height),
                space(width, self.width),
            ]
            .into_iter()
            .fold(1u64, |all, side| all.saturating_mul(side as u64))
        };
        let count = |length: usize, axis: Axis| length.div_ceil(axis.input.stride.max(1)) as u64;
        // Tiles of full size before the last one of full size.
        let full = |length: usize, Axis { input, .. }: Axis| length.saturating_sub(input.size) / input.stride.max(1);
        let (down, right) = (full(height, self.height), full(width, self.width) as u64);
        let done = positions([together, down * self.height.input.stride, width]);
        let tile = positions([together, rows, columns]);
        let row = tile.saturating_mul(count(width, self.width));
        let all = positions([together, height, width]);
        // Tiles along the frames are held until the next ones are blended with them.
        let before = if together < frames { all } else { 0 };
        let joined = if rows < height || columns < width {
            2 * all + row
        } else {
            all
        };
        HeldOutputs {
            working: done + if down > 0 { row } else { 0 } + (right + u64::from(in_pieces)) * tile + before,
            joining: joined.max((1 + finished) * all) + 2 * before,
        }
    }

    /// Processes x (B, C, F, H, W) tile by tile, emitting frames as they are ready.
    pub fn code<E: From<Error>>(
        &self,
        x: &Tensor,
        mut code: impl FnMut(&Tensor) -> Result<Tensor>,
        mut emit: impl FnMut(Tensor) -> Emitted<E>,
    ) -> Emitted<E> {
        self.check()?;
        if let Some(ramped) = self.ramped() {
            return ramped.code(x, code, emit);
        }
        let frames = x.dim(2)?;
        let Some((axis, dropped)) = self.frames.filter(|(axis, _)| frames > axis.input.size) else {
            return emit(self.code_frames(x, &mut code)?);
        };
        let mut before: Option<Tensor> = None;
        for start in (0..frames).step_by(axis.input.stride) {
            let length = (axis.input.size + 1).min(frames - start);
            if start > 0 && length == 1 {
                break; // it would be dropped
            }
            let mut tile = self.code_frames(&x.narrow(2, start, length)?, &mut code)?;
            let (all, mut keep) = (tile.dim(2)?, axis.output.stride + 1);
            if let Some(before) = &before {
                tile = tile.narrow(2, usize::from(dropped == End::First), all - 1)?;
                tile = blend(before, &tile, 2, axis.blend())?;
                keep -= 1;
            }
            emit(tile.narrow(2, 0, keep.min(tile.dim(2)?))?)?;
            before = Some(tile);
        }
        Ok(())
    }

    /// Returns the axes of tiles that are joined by ramps.
    fn ramped(&self) -> Option<Ramped> {
        let (frames, _) = self.frames.filter(|_| self.seams == Seams::Ramps)?;
        let axes = [frames, self.height, self.width];
        Some(Ramped { axes })
    }

    fn check(&self) -> Result<()> {
        let frames = self.frames.map(|(axis, _)| axis);
        let axes = [Some(self.height), Some(self.width), frames].into_iter().flatten();
        for Axis { input, output } in axes {
            if input.stride == 0 || output.stride == 0 || input.stride > input.size {
                bail!("tiles are too small or overlap too much: {self:?}");
            }
        }
        Ok(())
    }

    /// Processes frames x (B, C, F, H, W) together, tile by tile where they are larger than one.
    fn code_frames(&self, x: &Tensor, code: &mut impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (height, width) = (x.dim(3)?, x.dim(4)?);
        let (rows, columns) = (self.height.input, self.width.input);
        if height <= rows.size && width <= columns.size {
            return code(x);
        }
        let mut above: Vec<Tensor> = Vec::new();
        let mut done = Vec::new();
        for top in (0..height).step_by(rows.stride) {
            let mut blended: Vec<Tensor> = Vec::new();
            let mut kept = Vec::new();
            for (column, left) in (0..width).step_by(columns.stride).enumerate() {
                let tile =
                    x.narrow(3, top, rows.size.min(height - top))?
                        .narrow(4, left, columns.size.min(width - left))?;
                let mut tile = code(&tile)?;
                if let Some(above) = above.get(column) {
                    tile = blend(above, &tile, 3, self.height.blend())?;
                }
                if let Some(before) = blended.last() {
                    tile = blend(before, &tile, 4, self.width.blend())?;
                }
                let (rows, columns) = (self.height.output.stride, self.width.output.stride);
                let keep = (rows.min(tile.dim(3)?), columns.min(tile.dim(4)?));
                kept.push(tile.narrow(3, 0, keep.0)?.narrow(4, 0, keep.1)?);
                blended.push(tile);
            }
            done.push(Tensor::cat(&kept, 4)?);
            above = blended;
        }
        Tensor::cat(&done, 3)
    }
}
