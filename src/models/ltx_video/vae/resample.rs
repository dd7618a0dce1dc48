//! Resampling to smaller and larger clips.
//!
//! `LTXVideoDownsampler3d`: the channels of t x h x w neighbours become one pixel's, in the order (c, t, h, w); a
//! residual does the same and is averaged over groups of channels. `LTXVideoUpsampler3d` is the inverse, with a
//! residual whose channels are repeated. Before time is halved, the first frame is repeated; after it is doubled, the
//! first frame is dropped: so the first frame stays separate.
//!
//! Letters: F frames, H rows, W columns, C input channels, O output channels.

use candle_core::{Result, Tensor};

use super::config::{DownsampleType, Up};
use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, FeatureCache, Geometry};
use crate::nn::shuffle::{by_pixel, grouped_mean, into_channels, out_of_channels};

const STRIDED: Geometry = Geometry {
    stride: 2,
    ..Geometry::CAUSAL
};

pub enum Downsampler {
    /// Every second frame, row and column.
    Strided(Conv3d),
    /// Moves frames, rows and columns into channels.
    IntoChannels(Conv3d, [usize; 3]),
}

impl Downsampler {
    pub fn load(kind: DownsampleType, channels: usize, outputs: usize, weights: Weights) -> Result<Self> {
        if kind == DownsampleType::Conv {
            let conv = Conv3d::load(channels, channels, STRIDED, false, weights.pp("conv"))?;
            return Ok(Self::Strided(conv.with_frame_stride(2)));
        }
        let stride = kind.stride();
        let pixels: usize = stride.iter().product();
        let conv = Conv3d::causal(channels, outputs / pixels, weights.pp("conv.conv"))?;
        Ok(Self::IntoChannels(conv, stride))
    }

    /// Forward pass (1, F, H, W, C) -> (1, F', H', W', O)
    pub fn forward(&self, x: Tensor, memory: &mut FeatureCache) -> Result<Tensor> {
        match self {
            Self::Strided(conv) => memory.convolve(conv, &x, None),
            Self::IntoChannels(conv, stride) => {
                let x = match stride[0] {
                    1 => x,
                    _ => Tensor::cat(&[&x.narrow(1, 0, 1)?, &x], 1)?,
                };
                let y = into_channels(&memory.convolve(conv, &x, None)?, *stride)?;
                let residual = into_channels(&x, *stride)?; // (1, F', H', W', a multiple of O)
                drop(x);
                let outputs = y.dim(4)?;
                y + grouped_mean(residual, outputs)?
            }
        }
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
        let weights = weights.pp("conv.conv");
        let (outputs, channels) = (block.outputs, block.outputs * block.factor);
        let weight = weights.get((8 * outputs, channels, 3, 3, 3), "weight")?;
        let bias = weights.get(8 * outputs, "bias")?;
        let sources = (0..8 * outputs).map(|i| (i % outputs % (channels / 8).max(1) * 8 + i / outputs) as u32);
        Ok(Self {
            conv: match weights.has_numbers() {
                true => Conv3d::new(&by_pixel(&weight, 8)?, &by_pixel(&bias, 8)?, Geometry::CAUSAL, &weights)?,
                false => Conv3d::outline(&weight, &bias, Geometry::CAUSAL)?,
            },
            residual: block
                .residual
                .then(|| Tensor::from_iter(sources, weights.device()))
                .transpose()?,
        })
    }

    /// Forward pass (1, F, H, W, C) -> (1, 2 F - 1, 2 H, 2 W, O)
    pub fn forward(&self, x: Tensor, memory: &mut FeatureCache) -> Result<Tensor> {
        let frames = x.dim(1)?;
        let y = match &self.residual {
            Some(sources) => memory.convolve_onto(x.index_select(sources, 4)?, &self.conv, &x, None)?,
            None => memory.convolve(&self.conv, &x, None)?,
        }; // (1, F, H, W, 2 2 2 O)
        drop(x);
        out_of_channels(&y, [2; 3])?.narrow(1, 1, 2 * frames - 1)
    }
}
