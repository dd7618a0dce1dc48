//! Half and twice the size, mostly frame by frame: `CogVideoXDownsample3D`, `CogVideoXUpsample3D`, `WanResample` without its
//! convolution over time.
//!
//! Down: a 3x3 convolution with stride 2 and zeros below and on the right; before it, where time is compressed, the
//! mean of every two frames (an odd first one is kept). Up: every pixel (and frame, except an odd first one) twice, then
//! a 3x3 convolution.
//!
//! Causal (`HunyuanVideoUpsampleCausal3D`): every pixel twice, and every frame but the first where time is compressed, then
//! a causal 3x3x3 convolution, of clips that come whole.
//!
//! Shapes: B samples, F frames, H rows, W columns, C channels, O output channels.

use candle_core::{Result, Tensor};

use super::coder::Layer;
use super::coder_memory::{PieceSize, Tally};
use super::conv3d::{Border, Conv3d, FeatureCache, Geometry, Input, Resample};
use super::weights::Weights;

/// A convolution with the change of size before it.
pub struct Resampler {
    conv: Conv3d,
    resample: Resample,
}

impl Resampler {
    /// Loads a convolution that halves the size; `frames` halves them too, by their mean.
    pub fn down(channels: usize, frames: bool, weights: Weights) -> Result<Self> {
        Ok(Self {
            conv: Conv3d::load(channels, channels, Geometry::HALVING, true, weights)?,
            resample: if frames { Resample::HalveFrames } else { Resample::None },
        })
    }

    /// Loads a convolution at twice the size; `frames` doubles them too, by repetition.
    pub fn up([channels, outputs]: [usize; 2], frames: bool, weights: Weights) -> Result<Self> {
        Ok(Self {
            conv: Conv3d::load(channels, outputs, Geometry::FLAT, true, weights)?,
            resample: match frames {
                true => Resample::DoubleSizeAndFrames,
                false => Resample::DoubleSize,
            },
        })
    }

    /// Loads a causal convolution at twice the size, of clips that come whole; `frames` doubles all frames but the first,
    /// too, by repetition.
    pub fn up_causal(channels: usize, frames: bool, border: Border, weights: Weights) -> Result<Self> {
        Ok(Self {
            conv: Conv3d::causal(channels, channels, weights)?.with_border(border),
            resample: match frames {
                true => Resample::DoubleSizeAndLaterFrames,
                false => Resample::DoubleSize,
            },
        })
    }
}

impl<S> Layer<S> for Resampler {
    /// Forward pass (B, F, H, W, C) -> (B, F', H', W', O)
    fn forward(&self, x: Tensor, _memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        let input = Input {
            resample: self.resample,
            ..(&x).into()
        };
        Ok(self.conv.forward(input)?.0)
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let y = tally.convolve(&self.conv, x, self.resample);
        tally.free(x);
        y
    }
}
