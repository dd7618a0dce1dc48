//! Resampling to half and twice the size: `CogVideoXDownsample3D` and `CogVideoXUpsample3D`.
//!
//! Down: if time is compressed, the mean of every two frames (an odd first one is kept); then a 3x3 convolution with
//! stride 2 and zeros below and on the right. Up: every pixel (and frame, except an odd first one) twice; then a 3x3
//! convolution.

use candle_core::{Result, Tensor};

use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, Geometry, Input, Resample};

pub struct Resampler {
    conv: Conv3d,
    resample: Resample,
}

impl Resampler {
    pub fn down(channels: usize, compress_time: bool, weights: Weights) -> Result<Self> {
        let resample = if compress_time {
            Resample::HalveFrames
        } else {
            Resample::None
        };
        Self::load(channels, Geometry::HALVING, resample, weights)
    }

    pub fn up(channels: usize, compress_time: bool, weights: Weights) -> Result<Self> {
        let resample = if compress_time {
            Resample::DoubleSizeAndFrames
        } else {
            Resample::DoubleSize
        };
        Self::load(channels, Geometry::FLAT, resample, weights)
    }

    fn load(channels: usize, geometry: Geometry, resample: Resample, weights: Weights) -> Result<Self> {
        Ok(Self {
            conv: Conv3d::load(channels, channels, geometry, true, weights.pp("conv"))?,
            resample,
        })
    }

    /// Forward pass (B, F, H, W, C) -> (B, F', H', W', C)
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let input = Input {
            resample: self.resample,
            ..x.into()
        };
        Ok(self.conv.forward(input)?.0)
    }
}
