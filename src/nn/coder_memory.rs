//! Estimate of the memory that a coder takes for a piece of a clip: layers are passed in thought, with sizes instead of
//! tensors, and the largest sum of what is held at a time is found.
//!
//! Counted: activations, the frames that convolutions keep, the buffers of convolutions. Not counted: weights, tables of
//! norms, attention's scores.

use super::conv3d::{Conv3d, Resample, STACK};

/// Size of a piece between two layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceSize {
    /// Frames, rows and columns.
    pub size: [usize; 3],
    /// Channels.
    pub channels: usize,
}

impl PieceSize {
    /// Returns the count of numbers.
    pub fn numbers(&self) -> u64 {
        let sides = self.size.into_iter().chain([self.channels]);
        sides.fold(1, |all, side| all.saturating_mul(side as u64))
    }

    /// Returns the same with other frames.
    pub fn with_frames(self, frames: usize) -> Self {
        let [_, height, width] = self.size;
        let size = [frames, height, width];
        Self { size, ..self }
    }
}

/// Counter of the numbers that are held.
#[derive(Debug, Clone, Copy)]
pub struct Tally {
    /// True if convolutions have kernels of their own, which need no copies of their input.
    direct: bool,
    /// True if the output of convolutions lags behind their input.
    lags: bool,
    held: u64,
    kept: u64,
    peak: u64,
}

impl Tally {
    /// Counter for a piece, kernels of the CPU or not, and convolutions that lag or not.
    pub fn new(piece: PieceSize, direct: bool, lags: bool) -> Self {
        let held = piece.numbers();
        Self {
            direct,
            lags,
            held,
            kept: 0,
            peak: held,
        }
    }

    /// Returns the most that was held at a time.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Returns what is kept from piece to piece.
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Counts what is held, and returns it.
    pub fn hold(&mut self, what: PieceSize) -> PieceSize {
        self.held = self.held.saturating_add(what.numbers());
        self.peak = self.peak.max(self.held);
        what
    }

    /// Counts what is freed.
    pub fn free(&mut self, what: PieceSize) {
        self.held = self.held.saturating_sub(what.numbers());
    }

    /// Counts what is kept until the next piece.
    pub fn keep(&mut self, what: PieceSize) {
        self.kept = self.kept.saturating_add(what.numbers());
    }

    /// Counts a convolution of x to a new tensor, and returns its size.
    pub fn convolve(&mut self, conv: &Conv3d, x: PieceSize, resample: Resample) -> PieceSize {
        let y = PieceSize {
            size: conv.output_size(x.size, resample),
            channels: conv.outputs(),
        };
        self.hold(y);
        self.work(conv, x, y, resample);
        y
    }

    /// Counts a convolution of x that is added to a tensor of its size.
    pub fn convolve_onto(&mut self, conv: &Conv3d, x: PieceSize) {
        let y = PieceSize {
            size: conv.output_size(x.size, Resample::None),
            channels: conv.outputs(),
        };
        if !self.lags {
            return self.work(conv, x, y, Resample::None);
        }
        self.hold(y);
        self.work(conv, x, y, Resample::None);
        self.hold(y); // the sum
        self.free(y);
        self.free(y);
        self.keep(y.with_frames(conv.reach()));
    }

    /// Counts what a convolution needs while it runs.
    fn work(&mut self, conv: &Conv3d, x: PieceSize, y: PieceSize, resample: Resample) {
        let seen = PieceSize {
            size: resample.seen(x.size),
            ..x
        };
        let past = seen.with_frames(conv.reach());
        let work = match self.direct {
            true => {
                let frame = seen.with_frames(1).numbers();
                frame.saturating_mul(conv.buffered_frames(y.size) as u64)
            }
            false => {
                // The normalised input, the one with its past, two padded copies, the stack, two copies of the result and
                // its sum with what it is added to.
                let frames = conv.frames_together(seen.size).min(y.size[0]);
                let copied = seen.with_frames(frames * conv.frame_stride() + conv.reach()).numbers();
                let stack = copied.saturating_mul(conv.reach() as u64 + 1).min(STACK as u64);
                let results = y.with_frames(frames).numbers();
                let copies = copied.saturating_mul(4).saturating_add(stack);
                copies.saturating_add(results.saturating_mul(3))
            }
        };
        let past = past.numbers();
        self.peak = self.peak.max(self.held.saturating_add(work).saturating_add(past));
        self.kept = self.kept.saturating_add(past);
    }
}
