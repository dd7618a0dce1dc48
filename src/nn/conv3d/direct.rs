//! Direct convolution on the CPU: f32, channels last, no im2col.
//!
//! With the channels last, the kw * C values under a kernel's row are contiguous, so a convolution is kt * kh short
//! products against panels of weights, and a stride is only a longer step from pixel to pixel. Input frames are
//! computed one by one, padded, in a ring of the few that the output needs: preceding operations (normalise, activate,
//! upsample, read older frames) are applied on the way into the ring and never stored whole.
//!
//! Letters: F frames, H rows, W columns, C input channels, O output channels.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{Line, Row, Run, multiply_add};
use crate::ops::simd::Isa;
use crate::process::allocations;

/// Input values of one pass over the pixels; with 64 channels of weights each they stay in the L2 cache.
const PASS: usize = 512;
/// Pixels that share a panel of weights while it is in the cache.
const BLOCK_PIXELS: usize = 192;
/// Small frames are combined until there are about this many pixels to divide among threads.
const STEP_PIXELS: usize = 2048;

/// Values of the padding around a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Border {
    /// Zeros.
    Zeros,
    /// Those of the nearest pixel.
    Edge,
}

/// Kernel, stride and padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Frames, rows, columns.
    pub kernel: [usize; 3],
    /// Stride of rows and columns; frames have none.
    pub stride: usize,
    /// Padding rows above and below.
    pub pad_rows: [usize; 2],
    /// Padding columns on the left and on the right.
    pub pad_columns: [usize; 2],
    /// Values of these rows and columns.
    pub border: Border,
}

impl Geometry {
    /// 3x3x3 with a border of zeros.
    pub const CAUSAL: Self = Self {
        kernel: [3, 3, 3],
        stride: 1,
        pad_rows: [1, 1],
        pad_columns: [1, 1],
        border: Border::Zeros,
    };

    /// 1x1x1.
    pub const POINTWISE: Self = Self {
        kernel: [1, 1, 1],
        stride: 1,
        pad_rows: [0, 0],
        pad_columns: [0, 0],
        border: Border::Zeros,
    };

    /// 3x3 of one frame that halves its rows and columns, with zeros below and on the right.
    pub const HALVING: Self = Self {
        kernel: [1, 3, 3],
        stride: 2,
        pad_rows: [0, 1],
        pad_columns: [0, 1],
        border: Border::Zeros,
    };

    /// 3x3 of one frame with a border of zeros.
    pub const FLAT: Self = Self {
        kernel: [1, 3, 3],
        ..Self::CAUSAL
    };

    /// 3x3 of two frames with a border of zeros.
    pub const PAIR: Self = Self {
        kernel: [2, 3, 3],
        ..Self::CAUSAL
    };

    /// Three frames of one pixel.
    pub const TIME: Self = Self {
        kernel: [3, 1, 1],
        ..Self::POINTWISE
    };

    /// Returns the rows and columns of the output.
    pub fn output(&self, height: usize, width: usize) -> (usize, usize) {
        let along = |size: usize, pad: [usize; 2], kernel: usize| {
            (size + pad[0] + pad[1])
                .checked_sub(kernel)
                .map_or(0, |rest| rest / self.stride + 1)
        };
        (
            along(height, self.pad_rows, self.kernel[1]),
            along(width, self.pad_columns, self.kernel[2]),
        )
    }
}

/// Returns how many of `frames` frames of so many pixels are computed together.
pub fn together(frames: usize, pixels: usize) -> usize {
    STEP_PIXELS.div_ceil(pixels.max(1)).clamp(1, frames.max(1))
}

/// Input frames of a convolution, computed on demand.
pub trait Frames: Sync {
    /// Returns the frames (including earlier ones within the kernel's reach), rows, columns.
    fn size(&self) -> [usize; 3];
    /// Returns the number of leading zero frames, which need no multiplication.
    fn blank(&self) -> usize;
    /// Writes one row, (W, C).
    fn row(&self, frame: usize, row: usize, into: &mut [f32]);
}

/// Weights of one convolution, in panels.
#[derive(Debug, Clone)]
pub struct Direct {
    geometry: Geometry,
    channels: usize,
    outputs: usize,
    frame_stride: usize,
    isa: Isa,
    width: usize,
    panels: Vec<Line>, // (ceil(O / width), kt, kh, kw * C, width)
    bias: Vec<f32>,    // (O)
}

impl Direct {
    /// Packs `weight`, (O, C, kt, kh, kw).
    pub fn new(weight: &[f32], bias: Vec<f32>, channels: usize, geometry: Geometry, isa: Isa) -> Self {
        let outputs = bias.len();
        let taps: usize = geometry.kernel.iter().product();
        assert_eq!(weight.len(), outputs * channels * taps);
        let width = isa.tile_width(outputs);
        let depth = taps * channels;
        let mut panels = vec![Line([0.0; 16]); outputs.div_ceil(width) * depth * width / 16];
        for (o, weight) in weight.chunks_exact(depth.max(1)).enumerate() {
            let (panel, lane) = (o / width, o % width);
            for (c, weight) in weight.chunks_exact(taps).enumerate() {
                for (tap, &weight) in weight.iter().enumerate() {
                    let at = (panel * depth + tap * channels + c) * width + lane;
                    panels[at / 16].0[at % 16] = weight;
                }
            }
        }
        Self {
            geometry,
            channels,
            outputs,
            frame_stride: 1,
            isa,
            width,
            panels,
            bias,
        }
    }

    /// Sets the stride over frames, at least 1.
    pub fn set_frame_stride(&mut self, stride: usize) {
        self.frame_stride = stride;
    }

    /// Sets the values of the padding.
    pub fn set_border(&mut self, border: Border) {
        self.geometry.border = border;
    }

    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Writes (F, H', W', O) to `out`, or adds to it, and returns the last kt - 1 frames of the input, (kt - 1, H, W,
    /// C), for the next piece.
    pub fn run(&self, input: &dyn Frames, out: &mut [f32], add: bool) -> Vec<f32> {
        let [frames, height, width] = input.size();
        let reach = self.geometry.kernel[0] - 1;
        let (out_height, out_width) = self.geometry.output(height, width);
        let out_frame = out_height * out_width * self.outputs;
        let out_frames = frames.saturating_sub(reach).div_ceil(self.frame_stride);
        assert_eq!(out.len(), out_frames * out_frame);
        let together = together(out_frames, out_height * out_width);
        let computes = !allocations::is_recording();
        let together = if computes { together } else { 1 }; // as for a large frame
        let mut ring = Ring::new(self, [height, width], self.span(together), input.blank());
        let mut filled = 0;
        for (step, out) in out.chunks_mut((together * out_frame).max(1)).enumerate() {
            let first = step * together;
            let count = out.len() / out_frame;
            while filled < first * self.frame_stride + self.span(count) {
                ring.fill(filled, input);
                filled += 1;
            }
            if !computes {
                continue;
            }
            let rows = self.block_rows(count * out_height, out_width);
            out.par_chunks_mut(rows * out_width * self.outputs)
                .enumerate()
                .for_each(|(block, out)| self.block(&ring, first * out_height + block * rows, out_height, out, add));
        }
        // Frames after the last computed one belong to the next piece's past.
        (filled..frames).for_each(|frame| ring.fill(frame, input));
        ring.last(reach, frames)
    }

    /// Returns the number of input frames that `count` output frames see.
    fn span(&self, count: usize) -> usize {
        count.saturating_sub(1) * self.frame_stride + self.geometry.kernel[0]
    }

    /// Returns the rows per thread.
    fn block_rows(&self, rows: usize, width: usize) -> usize {
        let shares = 2 * rayon::current_num_threads();
        BLOCK_PIXELS.div_ceil(width.max(1)).min(rows.div_ceil(shares)).max(1)
    }

    /// Computes some rows of output; `first` is counted from the first row of frame 0.
    fn block(&self, ring: &Ring, first: usize, out_height: usize, out: &mut [f32], add: bool) {
        for pixel in out.chunks_exact_mut(self.outputs) {
            for (out, bias) in pixel.iter_mut().zip(&self.bias) {
                *out = if add { *out + bias } else { *bias };
            }
        }
        let out_width = self.geometry.output(ring.height, ring.width).1;
        let depth = self.geometry.kernel.iter().product::<usize>() * self.channels;
        let mut edge = vec![
            0.0;
            if self.outputs.is_multiple_of(self.width) {
                0
            } else {
                out_width * self.width
            }
        ];
        for (panel, weights) in self.panels.chunks_exact(depth * self.width / 16).enumerate() {
            let lanes = panel * self.width..self.outputs.min((panel + 1) * self.width);
            for pass in self.passes() {
                let depth: usize = pass.iter().map(|tap| tap.len).sum();
                let begin = pass[0].depth * self.width / 16;
                let panel = &weights[begin..begin + depth * self.width / 16];
                for (i, out) in out.chunks_exact_mut(out_width * self.outputs).enumerate() {
                    let (frame, y) = ((first + i) / out_height, (first + i) % out_height);
                    let frame = frame * self.frame_stride;
                    if pass.iter().all(|tap| frame + tap.frame < ring.blank) {
                        continue;
                    }
                    let runs: Vec<Run> = pass
                        .iter()
                        .map(|tap| Run {
                            offset: ring.at(frame + tap.frame, y * self.geometry.stride + tap.row) + tap.within,
                            len: tap.len,
                        })
                        .collect();
                    let row = Row {
                        input: &ring.values,
                        start: 0,
                        step: self.geometry.stride * self.channels,
                        pixels: out_width,
                        runs: &runs,
                        panel,
                        width: self.width,
                    };
                    if lanes.len() == self.width {
                        multiply_add(self.isa, &row, &mut out[lanes.start..], self.outputs);
                    } else {
                        self.multiply_add_edge(&row, out, lanes.clone(), &mut edge);
                    }
                }
            }
        }
    }

    /// Computes the last panel, if it has more lanes than output channels are left.
    fn multiply_add_edge(&self, row: &Row, out: &mut [f32], lanes: Range<usize>, edge: &mut [f32]) {
        for (edge, out) in edge.chunks_exact_mut(self.width).zip(out.chunks_exact(self.outputs)) {
            edge[..lanes.len()].copy_from_slice(&out[lanes.clone()]);
        }
        multiply_add(self.isa, row, edge, self.width);
        for (edge, out) in edge.chunks_exact(self.width).zip(out.chunks_exact_mut(self.outputs)) {
            out[lanes.clone()].copy_from_slice(&edge[..lanes.len()]);
        }
    }

    /// Groups the taps into passes of about `PASS` values.
    fn passes(&self) -> Vec<Vec<Tap>> {
        let [kt, kh, kw] = self.geometry.kernel;
        let mut passes: Vec<Vec<Tap>> = Vec::new();
        let (mut depth, mut room) = (0, 0);
        for (frame, row) in (0..kt).flat_map(|frame| (0..kh).map(move |row| (frame, row))) {
            let mut within = 0;
            while within < kw * self.channels {
                let len = PASS.min(kw * self.channels - within);
                if len > room {
                    passes.push(Vec::new());
                    room = PASS;
                }
                let pass = passes.last_mut().expect("the first tap always starts a pass");
                pass.push(Tap {
                    frame,
                    row,
                    within,
                    len,
                    depth,
                });
                (depth, within, room) = (depth + len, within + len, room - len);
            }
        }
        passes
    }
}

/// Consecutive input values under one row of the kernel.
#[derive(Debug, Clone, Copy)]
struct Tap {
    frame: usize,
    row: usize,
    within: usize,
    len: usize,
    /// Offset of its weights in a panel.
    depth: usize,
}

/// The last few frames of the input, padded.
struct Ring {
    values: Vec<f32>, // (slots, top + H + bottom, left + W + right, C)
    slots: usize,
    /// Leading zero frames of the input.
    blank: usize,
    height: usize,
    width: usize,
    top: usize,
    left: usize,
    channels: usize,
    row_len: usize,
    slot_len: usize,
    border: Border,
}

impl Ring {
    fn new(conv: &Direct, [height, width]: [usize; 2], slots: usize, blank: usize) -> Self {
        let Geometry {
            pad_rows,
            pad_columns,
            border,
            ..
        } = conv.geometry;
        let row_len = (pad_columns[0] + width + pad_columns[1]) * conv.channels;
        let slot_len = (pad_rows[0] + height + pad_rows[1]) * row_len;
        Self {
            values: vec![0.0; slots * slot_len],
            slots,
            blank,
            height,
            width,
            top: pad_rows[0],
            left: pad_columns[0],
            channels: conv.channels,
            row_len,
            slot_len,
            border,
        }
    }

    /// Returns the offset of a padded row of a frame.
    fn at(&self, frame: usize, padded_row: usize) -> usize {
        frame % self.slots * self.slot_len + padded_row * self.row_len
    }

    fn fill(&mut self, frame: usize, input: &dyn Frames) {
        let begin = self.at(frame, 0);
        let rows = self.top * self.row_len..(self.top + self.height) * self.row_len;
        let inside = self.left * self.channels..(self.left + self.width) * self.channels;
        let slot = &mut self.values[begin..begin + self.slot_len];
        slot[rows.clone()]
            .par_chunks_mut(self.row_len)
            .enumerate()
            .for_each(|(row, values)| {
                input.row(frame, row, &mut values[inside.clone()]);
                if self.border == Border::Edge {
                    repeat_ends(values, inside.clone(), self.channels);
                }
            });
        if self.border == Border::Edge {
            repeat_ends(slot, rows, self.row_len);
        }
    }

    /// Returns the last `count` of `frames` frames, without their padding.
    fn last(&self, count: usize, frames: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(count * self.height * self.width * self.channels);
        for frame in frames.saturating_sub(count)..frames {
            for row in 0..self.height {
                let begin = self.at(frame, self.top + row) + self.left * self.channels;
                values.extend_from_slice(&self.values[begin..begin + self.width * self.channels]);
            }
        }
        values
    }
}

/// Fills what lies before and after `inside` with its first and its last `len` values.
fn repeat_ends(values: &mut [f32], inside: Range<usize>, len: usize) {
    for start in (0..inside.start).step_by(len) {
        values.copy_within(inside.start..inside.start + len, start);
    }
    for start in (inside.end..values.len()).step_by(len) {
        values.copy_within(inside.end - len..inside.end, start);
    }
}
