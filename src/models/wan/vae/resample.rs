//! `WanResample`: half the size, twice the size, and the same for the frames if there is a `time_conv`.
//!
//! Down: a 3x3 convolution with stride 2 and zeros below and on the right; then a convolution of three frames with
//! stride 2, whose first is the last one of the previous piece. Up: a convolution of three frames that makes two of
//! each, one in each half of its channels; then every pixel twice and a 3x3 convolution. A clip's first frame skips
//! both convolutions over time, and is not cached on the way up: the second frame sees zeros before it.
//!
//! Letters: B batch, F frames, H rows, W columns, C channels.

use candle_core::{Result, Tensor};

use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, FeatureCache, Geometry, Input, Resample};

pub struct Resampler {
    resample: Conv3d,
    time_conv: Option<Conv3d>,
}

impl Resampler {
    /// Loads `downsample3d` if frames are halved too, else `downsample2d`.
    pub fn down(channels: usize, in_time: bool, weights: Weights) -> Result<Self> {
        let time_conv = || Conv3d::load(channels, channels, Geometry::TIME, false, weights.pp("time_conv"));
        Ok(Self {
            resample: Conv3d::load(channels, channels, Geometry::HALVING, true, weights.pp("resample.1"))?,
            time_conv: in_time.then(time_conv).transpose()?,
        })
    }

    /// Loads `upsample3d` if frames are doubled too, else `upsample2d`.
    pub fn up(channels: usize, in_time: bool, weights: Weights) -> Result<Self> {
        let time_conv = || Conv3d::load(channels, 2 * channels, Geometry::TIME, false, weights.pp("time_conv"));
        Ok(Self {
            resample: Conv3d::load(channels, channels / 2, Geometry::FLAT, true, weights.pp("resample.1"))?,
            time_conv: in_time.then(time_conv).transpose()?,
        })
    }

    /// Halves (B, F, H, W, C) -> (B, F', H/2, W/2, C)
    pub fn halve(&self, x: &Tensor, memory: &mut FeatureCache) -> Result<Tensor> {
        let x = self.resample.forward(x.into())?.0;
        let Some(time_conv) = &self.time_conv else {
            return Ok(x);
        };
        if memory.is_first() {
            // Of the two cached frames, the earlier one is unused.
            memory.skip(Some(Tensor::cat(&[&x, &x], 1)?))?;
            return Ok(x);
        }
        // Computed without a stride: the frames in between are a small part of the total cost.
        let x = memory.convolve(time_conv, &x, None)?;
        let (batch, frames, height, width, channels) = x.dims5()?;
        x.reshape((batch, frames / 2, 2, height, width, channels))?
            .narrow(2, 1, 1)?
            .squeeze(2)?
            .contiguous()
    }

    /// Doubles (B, F, H, W, C) -> (B, F', 2 H, 2 W, C/2)
    pub fn double(&self, mut x: Tensor, memory: &mut FeatureCache) -> Result<Tensor> {
        match &self.time_conv {
            Some(_) if memory.is_first() => memory.skip(None)?,
            Some(time_conv) => {
                let (batch, frames, height, width, channels) = x.dims5()?;
                x = memory
                    .convolve(time_conv, &x, None)? // (B, F, H, W, 2 C)
                    .reshape((batch, frames, height * width, 2, channels))?
                    .transpose(2, 3)?
                    .contiguous()?
                    .reshape((batch, 2 * frames, height, width, channels))?;
            }
            None => {}
        }
        let input = Input {
            resample: Resample::DoubleSize,
            ..(&x).into()
        };
        Ok(self.resample.forward(input)?.0)
    }
}
