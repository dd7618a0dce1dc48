//! Fourier features of pixels: x, then sin(2 pi 2^k x), then cos(2 pi 2^k x), k = first, first + 1, ... for each channel of
//! x, in f32 (`FourierFeatures` of Mochi 1; arXiv:2006.10739).
//!
//! Shapes: B samples, F frames, H rows, W columns, C channels, n frequencies.

use std::f32::consts::TAU;

use candle_core::{DType, Result, Tensor};

use super::coder::Layer;
use super::coder_memory::{PieceSize, Tally};
use super::conv3d::FeatureCache;

/// Frequencies 2^first, 2^(first + 1), ...
#[derive(Debug, Clone, Copy)]
pub struct FourierFeatures {
    /// Power of two of the lowest.
    pub first: i32,
    /// Their number.
    pub count: usize,
    /// Number format of the output, whatever that of the input.
    pub dtype: DType,
}

impl FourierFeatures {
    /// Returns the number of features of so many channels.
    pub const fn features(&self, channels: usize) -> usize {
        channels * (1 + 2 * self.count)
    }
}

impl<S> Layer<S> for FourierFeatures {
    /// Forward pass (B, F, H, W, C) -> (B, F, H, W, C + 2 n C)
    fn forward(&self, x: Tensor, _memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let frequencies = (0..self.count).map(|i| TAU * 2f32.powi(self.first + i as i32));
        let frequencies = Tensor::from_iter(frequencies, x.device())?;
        let angles = wide.unsqueeze(5)?.broadcast_mul(&frequencies)?.flatten_from(4)?; // (B, F, H, W, n C)
        let (sin, cos) = (angles.sin()?, angles.cos()?);
        drop(angles);
        Tensor::cat(&[wide, sin, cos], 4)?.to_dtype(self.dtype)
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let y = PieceSize {
            channels: self.features(x.channels),
            ..x
        };
        let angles = PieceSize {
            channels: self.count * x.channels,
            ..x
        };
        tally.hold(angles); // their sines
        tally.hold(angles); // and cosines
        tally.hold(y);
        tally.free(angles);
        tally.free(angles);
        tally.free(x);
        y
    }
}
