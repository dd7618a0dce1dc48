//! `HunyuanVideoEncoder3D`: blocks of resnets that halve the size, then the middle. `HunyuanVideoDecoder3D`: the middle, then
//! blocks of resnets that double the size.
//!
//! Shapes: L channels of latents.

use candle_core::Result;

use super::config::{COLOURS, Config, TEMPORAL_COMPRESSION};
use crate::models::autoencoder::{Codec, Sizes, Unconditional};
use crate::models::tiling::{End, Tiling};
use crate::nn::coder::{Coder, NormConv, Pieces};
use crate::nn::conv3d::{Border, Conv3d, TemporalPadding};
use crate::nn::frame_attention::FrameAttention;
use crate::nn::group_norm::GroupNorm;
use crate::nn::pixel_resampler::strided;
use crate::nn::resampler::Resampler;
use crate::nn::{Resnet, Weights};

const EPS: f64 = 1e-6;

impl Unconditional for Config {}

impl Codec for Config {
    type State = ();
    type Statistics = ();

    /// Encoder of clips (.., 3) to mean and log-variance (.., 2 L).
    fn encoder(&self, weights: &Weights) -> Result<Coder<()>> {
        let (root, weights) = (weights, weights.pp("encoder"));
        let resnet = |channels, weights| self.resnet(channels, weights);
        let mut channels = self.block_out_channels[0];
        let mut coder = whole_clips();
        coder.push(causal([COLOURS, channels], weights.pp("conv_in"))?);
        for (i, &outputs) in self.block_out_channels.iter().enumerate() {
            let (weights, layers) = (weights.pp("down_blocks").pp(i), self.layers_per_block);
            coder.extend(layers, [channels, outputs], &weights.pp("resnets"), resnet)?;
            channels = outputs;
            if let Some(in_time) = self.resamples_time(i) {
                let conv = strided(
                    channels,
                    1 + usize::from(in_time),
                    weights.pp("downsamplers.0.conv.conv"),
                )?;
                coder.push(conv.with_border(Border::Edge));
            }
        }
        self.mid_block(&mut coder, channels, &weights.pp("mid_block"))?;
        let moments = 2 * self.latent_channels;
        coder.push(self.head([channels, moments], &weights)?);
        coder.push(Conv3d::pointwise(moments, moments, root.pp("quant_conv"))?);
        Ok(coder)
    }

    /// Decoder of latents (.., L) to clips (.., 3).
    fn decoder(&self, weights: &Weights) -> Result<Coder<()>> {
        let (root, weights) = (weights, weights.pp("decoder"));
        let (resnet, latents) = (|channels, weights| self.resnet(channels, weights), self.latent_channels);
        let mut channels = self.block_out_channels[self.block_out_channels.len() - 1];
        let mut coder = whole_clips();
        coder.push(Conv3d::pointwise(latents, latents, root.pp("post_quant_conv"))?);
        coder.push(causal([latents, channels], weights.pp("conv_in"))?);
        self.mid_block(&mut coder, channels, &weights.pp("mid_block"))?;
        for (i, &outputs) in self.block_out_channels.iter().rev().enumerate() {
            let (weights, layers) = (weights.pp("up_blocks").pp(i), self.layers_per_block + 1);
            coder.extend(layers, [channels, outputs], &weights.pp("resnets"), resnet)?;
            channels = outputs;
            if let Some(in_time) = self.resamples_time(i) {
                let weights = weights.pp("upsamplers.0.conv.conv");
                coder.push(Resampler::up_causal(channels, in_time, Border::Edge, weights)?);
            }
        }
        coder.push(self.head([channels, COLOURS], &weights)?);
        Ok(coder)
    }

    fn statistics(&self, _weights: &Weights) -> anyhow::Result<()> {
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            channels: COLOURS,
            latent_channels: self.latent_channels,
            frames: TEMPORAL_COMPRESSION,
            side: self.spatial_compression(),
            compression: [TEMPORAL_COMPRESSION, self.spatial_compression()],
        }
    }

    fn tiling(&self) -> Tiling {
        Tiling::square(256, 192).with_frames(16, 12, End::First)
    }
}

impl Config {
    /// Adds a `HunyuanVideoMidBlock3D`: attention between two resnets.
    fn mid_block(&self, coder: &mut Coder<()>, channels: usize, weights: &Weights) -> Result<()> {
        let attention = weights.pp("attentions.0");
        coder.push(self.resnet([channels; 2], weights.pp("resnets.0"))?);
        coder.push(FrameAttention::load(channels, self.norm_num_groups, EPS, attention)?);
        coder.push(self.resnet([channels; 2], weights.pp("resnets.1"))?);
        Ok(())
    }

    fn resnet(&self, channels: [usize; 2], weights: Weights) -> Result<Resnet<GroupNorm>> {
        let norm = |i, channels| self.norm(channels, weights.pp(format!("norm{i}")));
        let convs = ["conv1.conv", "conv2.conv", "conv_shortcut.conv"];
        Ok(Resnet::load(channels, convs, norm, &weights)?.with_border(Border::Edge))
    }

    /// Loads the last norm and convolution.
    fn head(&self, [channels, outputs]: [usize; 2], weights: &Weights) -> Result<NormConv<GroupNorm>> {
        Ok(NormConv {
            norm: self.norm(channels, weights.pp("conv_norm_out"))?,
            conv: causal([channels, outputs], weights.pp("conv_out"))?,
        })
    }

    fn norm(&self, channels: usize, weights: Weights) -> Result<GroupNorm> {
        GroupNorm::load(channels, self.norm_num_groups, EPS, weights)
    }
}

/// Returns a coder without layers.
fn whole_clips() -> Coder<()> {
    Coder::new(TemporalPadding::First, Pieces::Whole, [1, 1])
}

/// Reads `HunyuanVideoCausalConv3d`, 3x3x3.
fn causal([channels, outputs]: [usize; 2], weights: Weights) -> Result<Conv3d> {
    Ok(Conv3d::causal(channels, outputs, weights.pp("conv"))?.with_border(Border::Edge))
}
