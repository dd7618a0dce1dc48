//! Input of a convolution with its preceding operations: earlier frames, `silu(x * scale + shift)`, a new size.
//!
//! `FrameSource` computes rows one by one on the CPU; `padded` computes some frames, for other devices.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::direct::Frames;
use super::simd::{scale_shift_silu, square_sum};
use super::{Input, Resample, TemporalPadding, doubled};
use crate::ops::modulate::{self, modulated_silu, table_frame};
use crate::ops::simd::Isa;

pub use crate::ops::modulate::select;

/// One sample, as slices.
pub struct FrameSource<'a> {
    pub x: &'a [f32], // (F, H, W, C)
    pub size: [usize; 3],
    pub channels: usize,
    pub past: Option<&'a [f32]>, // (reach, H, W, C)
    /// Frames that the kernel reaches back.
    pub reach: usize,
    /// Number of these that follow the last frame instead of preceding the first.
    pub ahead: usize,
    /// Frames of zeros before the first and after the last.
    pub blank: [usize; 2],
    pub tables: Option<(&'a [f32], &'a [f32])>, // (F', H', W', C)
    pub table_size: [usize; 3],
    pub rms_eps: Option<f64>,
    pub resample: Resample,
    pub isa: Isa,
}

impl FrameSource<'_> {
    /// Returns one row of x as passed in.
    fn given(&self, frame: usize, row: usize) -> &[f32] {
        let len = self.size[2] * self.channels;
        &self.x[(frame * self.size[1] + row) * len..][..len]
    }

    fn normalised(&self, frame: usize, row: usize, into: &mut [f32]) {
        let given = self.given(frame, row);
        let Some((scale, shift)) = self.tables else {
            into.copy_from_slice(given);
            return;
        };
        let [frames, height, width] = self.size;
        let [table_frames, table_height, table_width] = self.table_size;
        let table_row =
            (table_frame(frame, frames, table_frames) * table_height + row * table_height / height) * table_width;
        for column in 0..width {
            let at = (table_row + column * table_width / width) * self.channels;
            let pixel = column * self.channels..(column + 1) * self.channels;
            scale_shift_silu(
                self.isa,
                &given[pixel.clone()],
                self.rms_eps.map_or(1.0, |eps| self.per_rms(&given[pixel.clone()], eps)),
                &scale[at..at + self.channels],
                &shift[at..at + self.channels],
                &mut into[pixel],
            );
        }
    }

    /// Returns 1 / sqrt(mean(x^2) + eps) of one pixel.
    fn per_rms(&self, pixel: &[f32], eps: f64) -> f32 {
        let mean = square_sum(self.isa, pixel) / self.channels as f32;
        (f64::from(mean) + eps).sqrt().recip() as f32
    }
}

impl Frames for FrameSource<'_> {
    fn size(&self) -> [usize; 3] {
        let [frames, height, width] = self.resample.seen(self.size);
        [self.reach + frames, height, width]
    }

    fn blank(&self) -> usize {
        self.blank[0]
    }

    fn row(&self, frame: usize, row: usize, into: &mut [f32]) {
        let [before, after] = self.blank;
        if frame < before || frame + after >= self.size()[0] {
            return into.fill(0.0);
        }
        if let (Some(past), true) = (self.past, frame < self.reach) {
            let height = self.size()[1];
            into.copy_from_slice(&past[(frame * height + row) * into.len()..][..into.len()]);
            return;
        }
        let last = self.size()[0] - self.reach - 1;
        let frame = frame.saturating_sub(self.reach - self.ahead).min(last);
        match self.resample {
            Resample::None => self.normalised(frame, row, into),
            Resample::HalveFrames => match pair(frame, self.size[0]) {
                (a, None) => into.copy_from_slice(self.given(a, row)),
                (a, Some(b)) => {
                    let pairs = self.given(a, row).iter().zip(self.given(b, row));
                    into.iter_mut()
                        .zip(pairs)
                        .for_each(|(into, (a, b))| *into = (a + b) * 0.5);
                }
            },
            Resample::DoubleSize | Resample::DoubleSizeAndFrames | Resample::DoubleSizeAndLaterFrames => {
                let frame = match self.resample {
                    Resample::DoubleSizeAndLaterFrames => frame.div_ceil(2),
                    _ => frame,
                };
                let pixels = self.given(frame, row / 2).chunks_exact(self.channels);
                for (two, pixel) in into.chunks_exact_mut(2 * self.channels).zip(pixels) {
                    two[..self.channels].copy_from_slice(pixel);
                    two[self.channels..].copy_from_slice(pixel);
                }
            }
        }
    }
}

/// Returns the frames whose mean is frame `frame` of the halved clip; an odd first one is separate.
fn pair(frame: usize, frames: usize) -> (usize, Option<usize>) {
    if frames.is_multiple_of(2) {
        (2 * frame, Some(2 * frame + 1))
    } else if frame == 0 {
        (0, None)
    } else {
        (2 * frame - 1, Some(2 * frame))
    }
}

/// Returns the frame that is repeated in the doubled clip's frame `frame`.
fn repeated(frame: usize, frames: usize) -> usize {
    if frames.is_multiple_of(2) {
        frame / 2
    } else {
        frame.div_ceil(2)
    }
}

/// Repeats frames from front to back; the `frames` to repeat are the last of `clip`.
pub fn repeat_in_place(clip: &mut [f32], frames: usize) {
    let total = doubled(frames);
    let len = clip.len() / total;
    for frame in 0..total {
        let from = (total - frames + repeated(frame, frames)) * len;
        if from != frame * len {
            clip.copy_within(from..from + len, frame * len);
        }
    }
}

/// Repeats frames (B, F, ...) -> (B, 2 F or 2 F - 1, ...)
pub fn repeat_frames(x: &Tensor) -> Result<Tensor> {
    let frames = x.dim(1)?;
    select(x, 1, (0..doubled(frames)).map(|frame| repeated(frame, frames)))
}

/// Returns some frames of the input after all operations, where the first `reach` are those before the clip (or at its
/// ends, if the padding is centred).
pub fn padded(input: &Input, range: Range<usize>, reach: usize) -> Result<Tensor> {
    let (_, frames, height, width, _) = input.x.dims5()?;
    let [frames, ..] = input.resample.seen([frames, height, width]);
    let before = if input.past.is_centred() { reach / 2 } else { reach };
    let missing = before.saturating_sub(range.start);
    let (start, end) = (range.start.saturating_sub(before), range.end.saturating_sub(before));
    let x = prepared(input, start..end.min(frames))?;
    match input.past {
        _ if reach == 0 => Ok(x),
        TemporalPadding::Frames(past) if missing > 0 => Tensor::cat(&[&past.narrow(1, range.start, missing)?, &x], 1),
        TemporalPadding::Zeros => x.pad_with_zeros(1, missing, 0),
        TemporalPadding::ZerosAround => x.pad_with_zeros(1, missing, end.saturating_sub(frames)),
        _ => x.pad_with_same(1, missing, end.saturating_sub(frames)),
    }
}

/// Returns some frames of the input after all operations, without the past.
fn prepared(input: &Input, range: Range<usize>) -> Result<Tensor> {
    let frames = input.x.dim(1)?;
    let given = |range: Range<usize>| input.x.narrow(1, range.start, range.len())?.contiguous();
    let doubled_size = |x: Tensor| {
        let (_, _, height, width, _) = x.dims5()?;
        let rows = select(&x, 2, (0..2 * height).map(|row| row / 2))?;
        select(&rows, 3, (0..2 * width).map(|column| column / 2))
    };
    match input.resample {
        Resample::None => match input.modulation {
            None => given(range),
            Some(modulation) => {
                let of_range = |table: &Tensor| match table.dim(1)? {
                    1 => Ok(table.clone()),
                    _ if range.len() == frames => Ok(table.clone()),
                    count => select(table, 1, range.clone().map(|frame| table_frame(frame, frames, count))),
                };
                let modulation = modulate::Modulation {
                    scale: &of_range(&modulation.scale)?,
                    shift: &of_range(&modulation.shift)?,
                    rms_eps: modulation.rms_eps,
                };
                modulated_silu(&given(range.clone())?, modulation)
            }
        },
        Resample::HalveFrames => {
            let pairs: Vec<_> = range.map(|frame| pair(frame, frames)).collect();
            let first = select(input.x, 1, pairs.iter().map(|(a, _)| *a))?;
            let second = select(input.x, 1, pairs.iter().map(|(a, b)| b.unwrap_or(*a)))?;
            (first + second)? * 0.5
        }
        Resample::DoubleSize | Resample::DoubleSizeAndFrames => doubled_size(given(range)?),
        Resample::DoubleSizeAndLaterFrames => doubled_size(select(input.x, 1, range.map(|frame| frame.div_ceil(2)))?),
    }
}
