//! `WanEncoder3d`: resnets that halve the size, then the middle. `WanDecoder3d`: the middle, then resnets that double
//! the size and halve the channels.
//!
//! Shapes: L channels of latents.

use candle_core::{Result, Tensor};

use super::attention::Attention;
use super::config::{COLOURS, Config};
use super::norm::Norm;
use crate::models::autoencoder::{Codec, Sizes, Unconditional};
use crate::models::tiling::Tiling;
use crate::nn::coder::{Coder, NormConv, Pieces};
use crate::nn::conv3d::{Conv3d, TemporalPadding};
use crate::nn::frame_resampler::{DoubleFrames, HalveFrames};
use crate::nn::resampler::Resampler;
use crate::nn::{Resnet, Weights};

/// Frames of a piece, except the first, which has one.
const SAMPLE_FRAMES: usize = 4;

impl Unconditional for Config {}

impl Codec for Config {
    type State = ();
    type Statistics = ();

    const FINISHED: usize = 2; // limited from below, and from above

    /// Encoder of clips (.., 3) to mean and log-variance (.., 2 L).
    fn encoder(&self, weights: &Weights) -> Result<Coder<()>> {
        let (root, weights) = (weights, weights.pp("encoder"));
        let mut coder = Coder::new(TemporalPadding::Zeros, Pieces::FirstAlone(SAMPLE_FRAMES), [1, 1]);
        coder.push(Conv3d::causal(COLOURS, self.base_dim, weights.pp("conv_in"))?);
        let mut channels = self.base_dim;
        let layers = self.num_res_blocks;
        for (i, multiple) in self.dim_mult.iter().enumerate() {
            // The checkpoint numbers all layers consecutively.
            let layer = |j| weights.pp("down_blocks").pp(i * (layers + 1) + j);
            let outputs = self.base_dim * multiple;
            for j in 0..layers {
                coder.push(resnet([channels, outputs], layer(j))?);
                channels = outputs;
            }
            if let Some(&in_time) = self.temperal_downsample.get(i) {
                coder.push(Resampler::down(channels, false, layer(layers).pp("resample.1"))?);
                if in_time {
                    coder.push(HalveFrames::load(channels, layer(layers).pp("time_conv"))?);
                }
            }
        }
        mid_block(&mut coder, channels, &weights.pp("mid_block"))?;
        let norm_out = Norm::load(channels, 3, weights.pp("norm_out"))?;
        coder.push(NormConv::load(
            norm_out,
            [channels, 2 * self.z_dim],
            weights.pp("conv_out"),
        )?);
        coder.push(Conv3d::pointwise(
            2 * self.z_dim,
            2 * self.z_dim,
            root.pp("quant_conv"),
        )?);
        Ok(coder)
    }

    /// Decoder of latents (.., L) to clips (.., 3).
    fn decoder(&self, weights: &Weights) -> Result<Coder<()>> {
        let (root, weights) = (weights, weights.pp("decoder"));
        let mut channels = self.base_dim * self.dim_mult[self.dim_mult.len() - 1];
        let mut coder = Coder::new(TemporalPadding::Zeros, Pieces::FirstAlone(1), [1, 1]);
        coder.push(Conv3d::pointwise(self.z_dim, self.z_dim, root.pp("post_quant_conv"))?);
        coder.push(Conv3d::causal(self.z_dim, channels, weights.pp("conv_in"))?);
        mid_block(&mut coder, channels, &weights.pp("mid_block"))?;
        let mut in_time = self.temperal_downsample.iter().rev();
        for (i, multiple) in self.dim_mult.iter().rev().enumerate() {
            let (weights, layers) = (weights.pp("up_blocks").pp(i), self.num_res_blocks + 1);
            let outputs = self.base_dim * multiple;
            coder.extend(layers, [channels, outputs], &weights.pp("resnets"), resnet)?;
            channels = outputs;
            if let Some(&in_time) = in_time.next() {
                let weights = weights.pp("upsamplers.0");
                if in_time {
                    coder.push(DoubleFrames::load(channels, weights.pp("time_conv"))?);
                }
                coder.push(Resampler::up(
                    [channels, channels / 2],
                    false,
                    weights.pp("resample.1"),
                )?);
                channels /= 2;
            }
        }
        let norm_out = Norm::load(channels, 3, weights.pp("norm_out"))?;
        coder.push(NormConv::load(norm_out, [channels, COLOURS], weights.pp("conv_out"))?);
        Ok(coder)
    }

    fn statistics(&self, _weights: &Weights) -> anyhow::Result<()> {
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            channels: COLOURS,
            latent_channels: self.z_dim,
            frames: SAMPLE_FRAMES,
            side: 1,
            compression: [self.temporal_compression(), self.spatial_compression()],
        }
    }

    fn tiling(&self) -> Tiling {
        Tiling::square(256, 192)
    }

    /// Limits values to -1..1.
    fn finish(&self, frames: Tensor) -> Result<Tensor> {
        frames.clamp(-1f32, 1f32)
    }
}

/// Adds a `WanMidBlock`: attention between two resnets.
fn mid_block(coder: &mut Coder<()>, channels: usize, weights: &Weights) -> Result<()> {
    coder.push(resnet([channels; 2], weights.pp("resnets.0"))?);
    coder.push(Attention::load(channels, weights.pp("attentions.0"))?);
    coder.push(resnet([channels; 2], weights.pp("resnets.1"))?);
    Ok(())
}

fn resnet(channels: [usize; 2], weights: Weights) -> Result<Resnet<Norm>> {
    let norm = |i, channels| Norm::load(channels, 3, weights.pp(format!("norm{i}")));
    Resnet::load(channels, ["conv1", "conv2", "conv_shortcut"], norm, &weights)
}
