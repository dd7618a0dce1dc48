//! `MochiEncoder3D`: resnets, then blocks that shrink the clip by a strided convolution before their resnets, then the middle;
//! attention over time after resnets. `MochiDecoder3D`: the middle, then blocks of resnets that enlarge the clip by a linear
//! layer, then resnets.
//!
//! Shapes: L channels of latents.

use candle_core::{DType, Result};

use super::config::{COLOURS, Config, GROUPS, HEAD_WIDTH};
use crate::models::autoencoder::{Codec, Sizes, Unconditional};
use crate::models::tiling::Tiling;
use crate::nn::coder::{Coder, DropFirst, NoNorm, NormConv, Pieces};
use crate::nn::conv3d::{Border, Conv3d, Geometry, TemporalPadding};
use crate::nn::depth_to_space::DepthToSpace;
use crate::nn::fourier_features::FourierFeatures;
use crate::nn::group_norm::{GroupNorm, NormedFrames};
use crate::nn::temporal_attention::TemporalAttention;
use crate::nn::{Resnet, Weights};

const EPS: f64 = 1e-5;

/// Latent frames that are decoded together.
const LATENT_FRAMES: usize = 1;

impl Unconditional for Config {}

impl Codec for Config {
    type State = ();
    type Statistics = ();

    /// Encoder of clips (.., 3) to mean and log-variance (.., 2 L).
    fn encoder(&self, weights: &Weights) -> Result<Coder<()>> {
        let (weights, widths) = (weights.pp("encoder"), &self.encoder_block_out_channels);
        let mut coder = Coder::new(TemporalPadding::First, Pieces::Whole, [1, 1]);
        // Of pixels in bf16, waves of a 64th and a 128th of white would be noise.
        coder.input = Some(DType::F32);
        let features = FourierFeatures {
            first: 6,
            count: 2,
            dtype: weights.dtype(),
        };
        coder.push(features);
        let features = features.features(COLOURS);
        coder.push(Conv3d::linear(features, widths[0], weights.pp("proj_in"))?);
        self.attending_block(&mut coder, 0, widths[0], &weights.pp("block_in"))?;
        for (i, sides) in widths.windows(2).enumerate() {
            let weights = weights.pp("down_blocks").pp(i);
            coder.push(strided(
                [sides[0], sides[1]],
                self.factors(i),
                weights.pp("conv_in.conv"),
            )?);
            self.attending_block(&mut coder, i + 1, sides[1], &weights)?;
        }
        let channels = widths[widths.len() - 1];
        self.attending_block(&mut coder, widths.len(), channels, &weights.pp("block_out"))?;
        coder.push(NormConv {
            norm: norm(channels, &weights.pp("norm_out"))?,
            conv: Conv3d::linear_no_bias(channels, 2 * self.latent_channels, weights.pp("proj_out"))?,
        });
        Ok(coder)
    }

    /// Decoder of latents (.., L) to clips (.., 3).
    fn decoder(&self, weights: &Weights) -> Result<Coder<()>> {
        let (weights, widths) = (weights.pp("decoder"), &self.decoder_block_out_channels);
        let last = widths.len() - 1;
        let mut coder = Coder::new(TemporalPadding::First, Pieces::Even(LATENT_FRAMES), [1, 1]);
        coder.push(Conv3d::pointwise(
            self.latent_channels,
            widths[last],
            weights.pp("conv_in"),
        )?);
        self.block(&mut coder, last + 1, widths[last], &weights.pp("block_in"))?;
        for i in (0..last).rev() {
            let (weights, sizes) = (weights.pp("up_blocks").pp(last - 1 - i), [widths[i + 1], widths[i]]);
            self.block(&mut coder, i + 1, sizes[0], &weights)?;
            coder.push(DepthToSpace::load(sizes, self.factors(i), weights.pp("proj"))?);
        }
        self.block(&mut coder, 0, widths[0], &weights.pp("block_out"))?;
        coder.push(NormConv {
            norm: NoNorm,
            conv: Conv3d::linear(widths[0], COLOURS, weights.pp("proj_out"))?,
        });
        coder.push(DropFirst(self.temporal_compression() - 1));
        Ok(coder)
    }

    fn statistics(&self, _weights: &Weights) -> anyhow::Result<()> {
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        let compression = [self.temporal_compression(), self.spatial_compression()];
        Sizes {
            channels: COLOURS,
            latent_channels: self.latent_channels,
            frames: compression[0],
            side: compression[1],
            compression,
        }
    }

    fn tiling(&self) -> Tiling {
        Tiling::square(256, 192)
    }
}

impl Config {
    /// Adds the resnets of a block, by its number from full size on.
    fn block(&self, coder: &mut Coder<()>, number: usize, channels: usize, weights: &Weights) -> Result<()> {
        let layers = self.layers_per_block[number];
        coder.extend(layers, [channels; 2], &weights.pp("resnets"), resnet)
    }

    /// Adds a block of the encoder, with attention after each resnet where the config says so.
    fn attending_block(&self, coder: &mut Coder<()>, number: usize, channels: usize, weights: &Weights) -> Result<()> {
        if !self.add_attention_block[number] {
            return self.block(coder, number, channels, weights);
        }
        for i in 0..self.layers_per_block[number] {
            coder.push(resnet([channels; 2], weights.pp("resnets").pp(i))?);
            let norm = norm(channels, &weights.pp("norms").pp(i))?;
            let attention = weights.pp("attentions").pp(i);
            coder.push(TemporalAttention::load(
                channels,
                channels / HEAD_WIDTH,
                norm,
                attention,
            )?);
        }
        Ok(())
    }
}

/// Reads `MochiResnetBlock3D`.
fn resnet(channels: [usize; 2], weights: Weights) -> Result<Resnet<GroupNorm>> {
    let norm = |i, channels| norm(channels, &weights.pp(format!("norm{i}")));
    let convs = ["conv1.conv", "conv2.conv", ""]; // the channels stay, so there is no shortcut
    Ok(Resnet::load(channels, convs, norm, &weights)?.with_border(Border::Edge))
}

fn norm(channels: usize, weights: &Weights) -> Result<GroupNorm> {
    Ok(GroupNorm::load(channels, GROUPS, EPS, weights.pp("norm_layer"))?.over(NormedFrames::Each))
}

/// Reads a convolution whose stride equals its kernel, which sees the first frame repeated before it.
fn strided([channels, outputs]: [usize; 2], [t, h, w]: [usize; 3], weights: Weights) -> Result<Conv3d> {
    let geometry = Geometry {
        kernel: [t, h, w],
        stride: h,
        ..Geometry::POINTWISE
    };
    Ok(Conv3d::load(channels, outputs, geometry, false, weights)?.with_frame_stride(t))
}
