//! Larger clips by a linear layer: it makes the channels of t x h x w pixels of every pixel (`proj` of `MochiUpBlock3D`).
//!
//! Shapes: B samples, F frames, H rows, W columns, C channels, O output channels.

use candle_core::{Result, Tensor};

use super::coder::Layer;
use super::coder_memory::{PieceSize, Tally};
use super::conv3d::{Conv3d, FeatureCache, Resample};
use super::shuffle::out_of_channels;
use super::weights::Weights;

/// Multiplies frames, rows and columns.
pub struct DepthToSpace {
    proj: Conv3d,
    /// Frames, rows and columns of one.
    factors: [usize; 3],
}

impl DepthToSpace {
    /// Reads a linear layer (O t h w, C), whose outputs are in the order (O, t, h, w).
    pub fn load([channels, outputs]: [usize; 2], factors: [usize; 3], weights: Weights) -> Result<Self> {
        let pixels = factors.iter().product();
        Ok(Self {
            proj: Conv3d::linear_into_pixels(channels, outputs, pixels, weights)?,
            factors,
        })
    }
}

impl<S> Layer<S> for DepthToSpace {
    /// Forward pass (B, F, H, W, C) -> (B, t F, h H, w W, O)
    fn forward(&self, x: Tensor, _memory: &mut FeatureCache, _state: &mut S) -> Result<Tensor> {
        let y = self.proj.forward((&x).into())?.0; // (B, F, H, W, t h w O)
        drop(x);
        out_of_channels(&y, self.factors)
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let y = tally.convolve(&self.proj, x, Resample::None);
        tally.free(x);
        let ([frames, height, width], [t, h, w]) = (y.size, self.factors);
        let larger = PieceSize {
            size: [t * frames, h * height, w * width],
            channels: y.channels / (t * h * w),
        };
        tally.hold(larger);
        tally.free(y);
        larger
    }
}
