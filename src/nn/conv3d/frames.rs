//! Input of a convolution with its preceding operations: earlier frames, `silu(x * scale + shift)`, a new size.
//!
//! `FrameSource` computes rows one by one on the CPU; `prepared` computes the whole clip, for other devices.

use candle_core::{Result, Tensor};

use super::direct::Frames;
use super::simd::{scale_shift_silu, square_sum};
use super::{Input, Resample, doubled};
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
    /// Number of these that are zeros.
    pub blank: usize,
    pub tables: Option<(&'a [f32], &'a [f32])>, // (F', H', W', C)
    pub table_size: [usize; 3],
    pub rms_eps: Option<f64>,
    pub resample: Resample,
    pub isa: Isa,
}

impl FrameSource<'_> {
    /// Returns the size that the convolution sees.
    pub fn resampled([frames, height, width]: [usize; 3], resample: Resample) -> [usize; 3] {
        match resample {
            Resample::None => [frames, height, width],
            Resample::HalveFrames => [frames.div_ceil(2), height, width],
            Resample::DoubleSize | Resample::DoubleSizeAndFrames => [frames, 2 * height, 2 * width],
        }
    }

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
        let [frames, height, width] = Self::resampled(self.size, self.resample);
        [self.reach + frames, height, width]
    }

    fn blank(&self) -> usize {
        self.blank
    }

    fn row(&self, frame: usize, row: usize, into: &mut [f32]) {
        if frame < self.blank {
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
            Resample::DoubleSize | Resample::DoubleSizeAndFrames => {
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

/// Returns the input after all operations, without the past.
pub fn prepared(input: &Input) -> Result<Tensor> {
    let x = match input.modulation {
        Some(modulation) => {
            let modulation = modulate::Modulation {
                scale: &modulation.scale,
                shift: &modulation.shift,
                rms_eps: modulation.rms_eps,
            };
            modulated_silu(input.x, modulation)?
        }
        None => input.x.clone(),
    };
    let (_, frames, height, width, _) = x.dims5()?;
    match input.resample {
        Resample::None => Ok(x),
        Resample::HalveFrames => {
            let pairs: Vec<_> = (0..frames.div_ceil(2)).map(|frame| pair(frame, frames)).collect();
            let first = select(&x, 1, pairs.iter().map(|(a, _)| *a))?;
            let second = select(&x, 1, pairs.iter().map(|(a, b)| b.unwrap_or(*a)))?;
            (first + second)? * 0.5
        }
        Resample::DoubleSize | Resample::DoubleSizeAndFrames => {
            let rows = select(&x, 2, (0..2 * height).map(|row| row / 2))?;
            select(&rows, 3, (0..2 * width).map(|column| column / 2))
        }
    }
}
