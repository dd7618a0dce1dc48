//! Change of frames in `WanResample`, which changes rows and columns too, as a [`Resampler`].
//!
//! Half: a convolution of three frames with stride 2, whose first is the last one of the previous piece. Twice: a
//! convolution of three frames that makes two of each, one in each half of its channels. A clip's first frame skips
//! both, and is not cached on the way up: the second frame sees zeros before it.
//!
//! Shapes: B samples, F frames, H rows, W columns, C channels.
//!
//! [`Resampler`]: super::resampler::Resampler

use candle_core::{Result, Tensor};

use super::coder::Layer;
use super::coder_memory::{PieceSize, Tally};
use super::conv3d::{Conv3d, FeatureCache, Geometry, Resample};
use super::weights::Weights;

/// Makes one of every two frames, except a clip's first.
pub struct HalveFrames(Conv3d);

impl HalveFrames {
    /// Reads the convolution over time.
    pub fn load(channels: usize, weights: Weights) -> Result<Self> {
        Ok(Self(Conv3d::load(channels, channels, Geometry::TIME, false, weights)?))
    }
}

impl<S> Layer<S> for HalveFrames {
    /// Forward pass (B, F, H, W, C) -> (B, F/2, H, W, C)
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        if memory.is_first() {
            // Of the two cached frames, the earlier one is unused.
            memory.skip(Some(Tensor::cat(&[&x, &x], 1)?))?;
            return Ok(x);
        }
        // Computed without a stride: the frames in between are a small part of the total cost.
        let x = memory.convolve(&self.0, &x, None)?;
        let (batch, frames, height, width, channels) = x.dims5()?;
        x.reshape((batch, frames / 2, 2, height, width, channels))?
            .narrow(2, 1, 1)?
            .squeeze(2)?
            .contiguous()
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let y = tally.convolve(&self.0, x, Resample::None);
        tally.free(x);
        tally.free(y);
        tally.hold(y.with_frames(y.size[0].div_ceil(2)))
    }
}

/// Makes two of every frame, except a clip's first.
pub struct DoubleFrames(Conv3d);

impl DoubleFrames {
    /// Reads the convolution over time.
    pub fn load(channels: usize, weights: Weights) -> Result<Self> {
        let conv = Conv3d::load(channels, 2 * channels, Geometry::TIME, false, weights)?;
        Ok(Self(conv))
    }
}

impl<S> Layer<S> for DoubleFrames {
    /// Forward pass (B, F, H, W, C) -> (B, 2 F, H, W, C)
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        if memory.is_first() {
            memory.skip(None)?;
            return Ok(x);
        }
        let (batch, frames, height, width, channels) = x.dims5()?;
        memory
            .convolve(&self.0, &x, None)? // (B, F, H, W, 2 C)
            .reshape((batch, frames, height * width, 2, channels))?
            .transpose(2, 3)?
            .contiguous()?
            .reshape((batch, 2 * frames, height, width, channels))
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let y = tally.convolve(&self.0, x, Resample::None);
        tally.free(x);
        let doubled = tally.hold(x.with_frames(2 * x.size[0]));
        tally.free(y);
        doubled
    }
}
