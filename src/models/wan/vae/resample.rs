//! Change of frames in `WanResample`, which changes rows and columns too, as a [`Resampler`].
//!
//! Half: a convolution of three frames with stride 2, whose first is the last one of the previous piece. Twice: a
//! convolution of three frames that makes two of each, one in each half of its channels. A clip's first frame skips
//! both, and is not cached on the way up: the second frame sees zeros before it.
//!
//! Shapes: B samples, F frames, H rows, W columns, C channels.
//!
//! [`Resampler`]: crate::nn::resampler::Resampler

use candle_core::{Result, Tensor};

use crate::nn::Weights;
use crate::nn::coder::Layer;
use crate::nn::conv3d::{Conv3d, FeatureCache, Geometry};

pub struct HalveFrames(Conv3d);

impl HalveFrames {
    pub fn load(channels: usize, weights: Weights) -> Result<Self> {
        Ok(Self(Conv3d::load(channels, channels, Geometry::TIME, false, weights)?))
    }
}

impl Layer<()> for HalveFrames {
    /// Forward pass (B, F, H, W, C) -> (B, F/2, H, W, C)
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut ()) -> Result<Tensor> {
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
}

pub struct DoubleFrames(Conv3d);

impl DoubleFrames {
    pub fn load(channels: usize, weights: Weights) -> Result<Self> {
        let conv = Conv3d::load(channels, 2 * channels, Geometry::TIME, false, weights)?;
        Ok(Self(conv))
    }
}

impl Layer<()> for DoubleFrames {
    /// Forward pass (B, F, H, W, C) -> (B, 2 F, H, W, C)
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut ()) -> Result<Tensor> {
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
}
