//! Resampling to smaller and larger clips, pixels into channels and back.
//!
//! `LTXVideoDownsampler3d`: the channels of t x h x w neighbours become one pixel's, in the order (c, t, h, w); a
//! residual does the same and is averaged over groups of channels. `LTXVideoUpsampler3d` is the inverse, with a
//! residual whose channels are repeated. Before time is halved, the first frame is repeated; after it is doubled, the
//! first frame is dropped: so the first frame stays separate.
//!
//! Letters: F frames, H rows, W columns, C input channels, O output channels.

use candle_core::{Result, Tensor};

use super::coder::Layer;
use super::coder_memory::{PieceSize, Tally};
use super::conv3d::{Conv3d, FeatureCache, Geometry, Resample};
use super::shuffle::{grouped_mean, into_channels, out_of_channels};
use super::weights::Weights;

const STRIDED: Geometry = Geometry {
    stride: 2,
    ..Geometry::CAUSAL
};

/// Reads a convolution that keeps every second row and column, and every frame that this stride meets.
pub fn strided(channels: usize, frame_stride: usize, weights: Weights) -> Result<Conv3d> {
    Ok(Conv3d::load(channels, channels, STRIDED, false, weights)?.with_frame_stride(frame_stride))
}

/// Moves frames, rows and columns into channels.
pub struct PixelDownsampler {
    conv: Conv3d,
    stride: [usize; 3],
}

impl PixelDownsampler {
    /// Reads `conv.conv`.
    pub fn load(stride: [usize; 3], [channels, outputs]: [usize; 2], weights: Weights) -> Result<Self> {
        let pixels: usize = stride.iter().product();
        let conv = Conv3d::causal(channels, outputs / pixels, weights.pp("conv.conv"))?;
        Ok(Self { conv, stride })
    }
}

impl<S> Layer<S> for PixelDownsampler {
    /// Forward pass (1, F, H, W, C) -> (1, F', H', W', O)
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        let x = match self.stride[0] > 1 && memory.is_first() {
            false => x,
            true => Tensor::cat(&[&x.narrow(1, 0, 1)?, &x], 1)?,
        };
        let y = into_channels(&memory.convolve(&self.conv, &x, None)?, self.stride)?;
        let residual = into_channels(&x, self.stride)?; // (1, F', H', W', a multiple of O)
        drop(x);
        let outputs = y.dim(4)?;
        y + grouped_mean(residual, outputs)?
    }

    fn lag(&self) -> usize {
        Layer::<S>::lag(&self.conv)
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let y = tally.convolve(&self.conv, x, Resample::None);
        tally.hold(y); // in other order
        tally.hold(x); // the residual
        tally.free(x);
        tally.free(x);
        tally.free(y);
        let [frames, height, width] = y.size;
        let [t, h, w] = self.stride;
        PieceSize {
            size: [frames.div_ceil(t), height / h, width / w],
            channels: y.channels * t * h * w,
        }
    }
}

/// Doubles frames, rows and columns.
pub struct PixelUpsampler {
    conv: Conv3d,
    /// Channel of x that is added to each channel of the convolution's result.
    residual: Option<Tensor>, // (8 O)
}

impl PixelUpsampler {
    /// Reads `conv.conv`, with or without a residual.
    pub fn load(residual: bool, [channels, outputs]: [usize; 2], weights: Weights) -> Result<Self> {
        let sources = (0..8 * outputs).map(|i| (i % outputs % (channels / 8).max(1) * 8 + i / outputs) as u32);
        let residual = residual.then(|| Tensor::from_iter(sources, weights.device()));
        Ok(Self {
            conv: Conv3d::into_pixels(channels, outputs, 8, weights.pp("conv.conv"))?,
            residual: residual.transpose()?,
        })
    }
}

impl<S> Layer<S> for PixelUpsampler {
    /// Forward pass (1, F, H, W, C) -> (1, 2 F - 1, 2 H, 2 W, O); of later pieces 2 F frames
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        let y = match &self.residual {
            Some(sources) => memory.convolve_onto(x.index_select(sources, 4)?, &self.conv, &x, None)?,
            None => memory.convolve(&self.conv, &x, None)?,
        }; // (1, F, H, W, 2 2 2 O)
        drop(x);
        let y = out_of_channels(&y, [2; 3])?;
        let first = usize::from(memory.starts()?);
        y.narrow(1, first, y.dim(1)? - first)
    }

    fn lag(&self) -> usize {
        Layer::<S>::lag(&self.conv)
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let PieceSize { size, channels } = match self.residual {
            Some(_) => {
                let y = PieceSize {
                    size: x.size,
                    channels: self.conv.outputs(),
                };
                tally.hold(y);
                tally.convolve_onto(&self.conv, x);
                y
            }
            None => tally.convolve(&self.conv, x, Resample::None),
        };
        tally.free(x);
        let y = PieceSize {
            size: size.map(|side| 2 * side),
            channels: channels / 8,
        };
        tally.hold(y); // in other order
        tally.free(y);
        y
    }
}
