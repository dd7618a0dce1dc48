//! Resampling to smaller and larger clips.
//!
//! `LTXVideoDownsampler3d`: the channels of t x h x w neighbours become one pixel's, in the order (c, t, h, w); a
//! residual does the same and is averaged over groups of channels. `LTXVideoUpsampler3d` is the inverse, with a
//! residual whose channels are repeated. Before time is halved, the first frame is repeated; after it is doubled, the
//! first frame is dropped: so the first frame stays separate.
//!
//! Letters: F frames, H rows, W columns, C input channels, O output channels.

use candle_core::{Result, Tensor};

use super::config::Up;
use super::resnet::State;
use crate::nn::Weights;
use crate::nn::coder::Layer;
use crate::nn::conv3d::{Conv3d, FeatureCache, Geometry};
use crate::nn::shuffle::{grouped_mean, into_channels, out_of_channels};

const STRIDED: Geometry = Geometry {
    stride: 2,
    ..Geometry::CAUSAL
};

/// Reads a convolution that keeps every second frame, row and column.
pub fn strided(channels: usize, weights: Weights) -> Result<Conv3d> {
    Ok(Conv3d::load(channels, channels, STRIDED, false, weights)?.with_frame_stride(2))
}

/// Moves frames, rows and columns into channels.
pub struct Downsampler {
    conv: Conv3d,
    stride: [usize; 3],
}

impl Downsampler {
    pub fn load(stride: [usize; 3], [channels, outputs]: [usize; 2], weights: Weights) -> Result<Self> {
        let pixels: usize = stride.iter().product();
        let conv = Conv3d::causal(channels, outputs / pixels, weights.pp("conv.conv"))?;
        Ok(Self { conv, stride })
    }
}

impl Layer<State> for Downsampler {
    /// Forward pass (1, F, H, W, C) -> (1, F', H', W', O)
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut State) -> Result<Tensor> {
        let x = match self.stride[0] {
            1 => x,
            _ => Tensor::cat(&[&x.narrow(1, 0, 1)?, &x], 1)?,
        };
        let y = into_channels(&memory.convolve(&self.conv, &x, None)?, self.stride)?;
        let residual = into_channels(&x, self.stride)?; // (1, F', H', W', a multiple of O)
        drop(x);
        let outputs = y.dim(4)?;
        y + grouped_mean(residual, outputs)?
    }
}

/// Doubles frames, rows and columns.
pub struct Upsampler {
    conv: Conv3d,
    /// Channel of x that is added to each channel of the convolution's result.
    residual: Option<Tensor>, // (8 O)
}

impl Upsampler {
    pub fn load(block: &Up, weights: Weights) -> Result<Self> {
        let (outputs, channels) = (block.outputs, block.outputs * block.factor);
        let sources = (0..8 * outputs).map(|i| (i % outputs % (channels / 8).max(1) * 8 + i / outputs) as u32);
        let residual = block.residual.then(|| Tensor::from_iter(sources, weights.device()));
        Ok(Self {
            conv: Conv3d::into_pixels(channels, outputs, 8, weights.pp("conv.conv"))?,
            residual: residual.transpose()?,
        })
    }
}

impl Layer<State> for Upsampler {
    /// Forward pass (1, F, H, W, C) -> (1, 2 F - 1, 2 H, 2 W, O)
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut State) -> Result<Tensor> {
        let frames = x.dim(1)?;
        let y = match &self.residual {
            Some(sources) => memory.convolve_onto(x.index_select(sources, 4)?, &self.conv, &x, None)?,
            None => memory.convolve(&self.conv, &x, None)?,
        }; // (1, F, H, W, 2 2 2 O)
        drop(x);
        out_of_channels(&y, [2; 3])?.narrow(1, 1, 2 * frames - 1)
    }
}
