//! Smaller and larger clips.
//!
//! `LTXVideoDownsampler3d`: what t x h x w neighbours have in their channels goes into one pixel's, in the order
//! (c, t, h, w); a residual takes the same way and is averaged over groups of channels. `LTXVideoUpsampler3d` is the
//! inverse, with a residual whose channels are repeated. Before time is halved, the first frame is put there twice;
//! after it is doubled, the first frame is dropped: the first frame stays alone.
//!
//! Letters: F frames, H rows, W columns, C input channels, O output channels.

use candle_core::{Result, Tensor};

use super::config::{DownsampleType, Up};
use super::conv::Conv;
use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, Geometry, Past};

const STRIDED: Geometry = Geometry {
    stride: 2,
    ..Geometry::CAUSAL
};

pub enum Downsampler {
    /// Every second frame, row and column.
    Strided(Conv),
    IntoChannels {
        conv: Conv,
        stride: [usize; 3],
        group: usize,
    },
}

impl Downsampler {
    pub fn load(
        kind: DownsampleType,
        channels: usize,
        outputs: usize,
        past: Past<'static>,
        weights: Weights,
    ) -> Result<Self> {
        if kind == DownsampleType::Conv {
            let conv = Conv3d::load(channels, channels, STRIDED, false, weights.pp("conv"))?;
            return Ok(Self::Strided(Conv::new(conv.with_frame_stride(2), past)));
        }
        let stride = kind.stride();
        let pixels: usize = stride.iter().product();
        Ok(Self::IntoChannels {
            conv: Conv::load(channels, outputs / pixels, past, weights.pp("conv"))?,
            stride,
            group: channels * pixels / outputs,
        })
    }

    /// (1, F, H, W, C) -> (1, F', H', W', O)
    pub fn forward(&self, x: Tensor) -> Result<Tensor> {
        match self {
            Self::Strided(conv) => conv.forward(&x, None),
            Self::IntoChannels { conv, stride, group } => {
                let x = match stride[0] {
                    1 => x,
                    _ => Tensor::cat(&[&x.narrow(1, 0, 1)?, &x], 1)?,
                };
                let y = into_channels(&conv.forward(&x, None)?, *stride)?;
                let residual = into_channels(&x, *stride)?; // (1, F', H', W', O group)
                drop(x);
                if *group == 1 {
                    return y + residual;
                }
                let (_, frames, height, width, channels) = y.dims5()?;
                let groups = residual.reshape(&[1, frames, height, width, channels, *group][..])?;
                y + groups.mean(5)?
            }
        }
    }
}

/// (1, t F, h H, w W, C) -> (1, F, H, W, C t h w)
fn into_channels(x: &Tensor, [t, h, w]: [usize; 3]) -> Result<Tensor> {
    let (_, frames, height, width, channels) = x.dims5()?;
    let (frames, height, width) = (frames / t, height / h, width / w);
    x.reshape(&[frames, t, height, h, width, w, channels][..])?
        .permute(&[0, 2, 4, 6, 1, 3, 5][..])?
        .reshape((1, frames, height, width, channels * t * h * w))
}

/// Twice the frames, rows and columns.
pub struct Upsampler {
    conv: Conv,
    outputs: usize,
    /// Which channel of x is added to each channel of the convolution's result.
    residual: Option<Tensor>, // (8 O)
}

impl Upsampler {
    pub fn load(block: &Up, past: Past<'static>, weights: Weights) -> Result<Self> {
        let weights = weights.pp("conv.conv");
        let (outputs, channels) = (block.outputs, block.outputs * block.factor);
        // The checkpoint has the eight pixels that a channel spreads over side by side. Here each pixel's channels are.
        let by_pixel = |tensor: Tensor| {
            let rest = tensor.dims()[1..].to_vec();
            let split = tensor.reshape([&[outputs, 8], &rest[..]].concat())?;
            split.transpose(0, 1)?.reshape([&[8 * outputs], &rest[..]].concat())
        };
        let weight = by_pixel(weights.get((8 * outputs, channels, 3, 3, 3), "weight")?)?;
        let bias = by_pixel(weights.get(8 * outputs, "bias")?)?;
        let sources = (0..8 * outputs).map(|i| (i % outputs % (channels / 8).max(1) * 8 + i / outputs) as u32);
        Ok(Self {
            conv: Conv::new(Conv3d::new(&weight, &bias, Geometry::CAUSAL)?, past),
            outputs,
            residual: block
                .residual
                .then(|| Tensor::from_iter(sources, weights.device()))
                .transpose()?,
        })
    }

    /// (1, F, H, W, C) -> (1, 2 F - 1, 2 H, 2 W, O)
    pub fn forward(&self, x: Tensor) -> Result<Tensor> {
        let (_, frames, height, width, _) = x.dims5()?;
        let y = match &self.residual {
            Some(sources) => self.conv.forward_onto(x.index_select(sources, 4)?, &x, None)?,
            None => self.conv.forward(&x, None)?,
        }; // (1, F, H, W, 2 2 2 O)
        drop(x);
        y.reshape(&[frames, height, width, 2, 2, 2, self.outputs][..])?
            .permute(&[0, 3, 1, 4, 2, 5, 6][..])?
            .reshape((1, 2 * frames, 2 * height, 2 * width, self.outputs))?
            .narrow(1, 1, 2 * frames - 1)
    }
}
