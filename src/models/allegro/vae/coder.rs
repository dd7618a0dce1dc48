//! `AllegroEncoder3D`: blocks of resnets, each followed by convolutions over time, that halve the size, then the middle.
//! `AllegroDecoder3D`: the middle, then blocks that double the size.

use candle_core::Result;

use super::config::{COLOURS, Config, OVERLAP, TILE_FRAMES};
use crate::models::autoencoder::{Codec, Sizes, Unconditional};
use crate::models::tiling::{Tiles, Tiling};
use crate::models::vae::FirstFrame;
use crate::nn::coder::{Coder, Pieces};
use crate::nn::conv3d::{Conv3d, TemporalPadding};
use crate::nn::frame_attention::FrameAttention;
use crate::nn::group_norm::{GroupNorm, NormedFrames};
use crate::nn::resampler::Resampler;
use crate::nn::temporal_conv::{FrameChange, TemporalConv, TemporalConvBlock};
use crate::nn::{Resnet, Weights};

const EPS: f64 = 1e-6;

impl Unconditional for Config {}

impl Codec for Config {
    type State = ();
    type Statistics = ();

    const ALONE: bool = true;
    const FIRST_FRAME: FirstFrame = FirstFrame::Grouped;

    /// Encoder of clips (.., 3) to mean and log-variance (.., 2 L), L channels of latents.
    fn encoder(&self, weights: &Weights) -> Result<Coder<()>> {
        let (root, weights) = (weights, weights.pp("encoder"));
        let (mut channels, moments) = (self.block_out_channels[0], 2 * self.latent_channels);
        let mut coder = whole_clips();
        begin(&mut coder, [COLOURS, channels], &weights)?;
        for (i, &outputs) in self.block_out_channels.iter().enumerate() {
            let weights = weights.pp("down_blocks").pp(i);
            self.layers(&mut coder, self.layers_per_block, [channels, outputs], &weights)?;
            channels = outputs;
            if self.temporal_downsample_blocks[i] {
                coder.push(self.in_time(channels, FrameChange::Halve, &weights.pp("temp_convs_down"))?);
            }
            if i + 1 < self.block_out_channels.len() {
                coder.push(Resampler::down(channels, false, weights.pp("downsamplers.0.conv"))?);
            }
        }
        self.mid_block(&mut coder, channels, &weights.pp("mid_block"))?;
        self.end(&mut coder, [channels, moments], &weights)?;
        coder.push(Conv3d::flat_pointwise([moments; 2], root.pp("quant_conv"))?);
        Ok(coder)
    }

    /// Decoder of latents (.., L) to clips (.., 3).
    fn decoder(&self, weights: &Weights) -> Result<Coder<()>> {
        let (root, weights) = (weights, weights.pp("decoder"));
        let (mut channels, latents) = (
            self.block_out_channels[self.block_out_channels.len() - 1],
            self.latent_channels,
        );
        let mut coder = whole_clips();
        coder.push(Conv3d::flat_pointwise([latents; 2], root.pp("post_quant_conv"))?);
        begin(&mut coder, [latents, channels], &weights)?;
        self.mid_block(&mut coder, channels, &weights.pp("mid_block"))?;
        for (i, &outputs) in self.block_out_channels.iter().rev().enumerate() {
            let weights = weights.pp("up_blocks").pp(i);
            self.layers(&mut coder, self.layers_per_block + 1, [channels, outputs], &weights)?;
            channels = outputs;
            if self.temporal_upsample_blocks[i] {
                coder.push(self.in_time(channels, FrameChange::Double, &weights.pp("temp_conv_up"))?);
            }
            if i + 1 < self.block_out_channels.len() {
                coder.push(Resampler::up([channels; 2], false, weights.pp("upsamplers.0.conv"))?);
            }
        }
        self.end(&mut coder, [channels, COLOURS], &weights)?;
        Ok(coder)
    }

    fn statistics(&self, _weights: &Weights) -> anyhow::Result<()> {
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        let [time, space] = [self.temporal_compression(), self.spatial_compression()];
        Sizes {
            channels: COLOURS,
            latent_channels: self.latent_channels,
            frames: time,
            side: space,
            compression: [time, space],
        }
    }

    fn tiling(&self) -> Tiling {
        let tiles = |size: usize, overlap| Tiles::new(size, size.saturating_sub(overlap));
        let ([frames, shared], [rows, columns], side) = (TILE_FRAMES, OVERLAP, self.sample_size);
        Tiling::always_ramps([tiles(frames, shared), tiles(side, rows), tiles(side, columns)])
    }

    fn forces_f32(&self) -> bool {
        self.force_upcast
    }
}

impl Config {
    /// Adds resnets, each followed by convolutions over time.
    fn layers(
        &self,
        coder: &mut Coder<()>,
        count: usize,
        [channels, outputs]: [usize; 2],
        weights: &Weights,
    ) -> Result<()> {
        for i in 0..count {
            let inputs = if i == 0 { channels } else { outputs };
            self.layer(coder, [inputs, outputs], i, weights)?;
        }
        Ok(())
    }

    /// Adds a resnet and convolutions over time.
    fn layer(&self, coder: &mut Coder<()>, channels: [usize; 2], i: usize, weights: &Weights) -> Result<()> {
        let [resnet, in_time] = ["resnets", "temp_convs"].map(|name| weights.pp(name).pp(i));
        let norm = |number, channels| self.norm(channels, resnet.pp(format!("norm{number}")));
        coder.push(Resnet::flat(channels, norm, &resnet)?);
        coder.push(self.in_time(channels[1], FrameChange::None, &in_time)?);
        Ok(())
    }

    /// Adds `AllegroMidBlock3DConv`: attention between two layers.
    fn mid_block(&self, coder: &mut Coder<()>, channels: usize, weights: &Weights) -> Result<()> {
        self.layer(coder, [channels; 2], 0, weights)?;
        let attention = FrameAttention::load(channels, self.norm_num_groups, EPS, weights.pp("attentions.0"))?;
        coder.push(attention.of_frames_alone());
        self.layer(coder, [channels; 2], 1, weights)
    }

    /// Adds the last norm and convolutions.
    fn end(&self, coder: &mut Coder<()>, [channels, outputs]: [usize; 2], weights: &Weights) -> Result<()> {
        let norm = self.norm(channels, weights.pp("conv_norm_out"))?;
        coder.push(TemporalConv::load(channels, Some(norm), weights.pp("temp_conv_out"))?);
        coder.push(Conv3d::flat([channels, outputs], weights.pp("conv_out"))?);
        Ok(())
    }

    fn in_time(&self, channels: usize, change: FrameChange, weights: &Weights) -> Result<TemporalConvBlock> {
        TemporalConvBlock::load(channels, self.norm_num_groups, change, weights)
    }

    /// Loads a norm of pictures.
    fn norm(&self, channels: usize, weights: Weights) -> Result<GroupNorm> {
        Ok(GroupNorm::load(channels, self.norm_num_groups, EPS, weights)?.over(NormedFrames::Each))
    }
}

/// Adds the first convolutions.
fn begin(coder: &mut Coder<()>, channels: [usize; 2], weights: &Weights) -> Result<()> {
    coder.push(Conv3d::flat(channels, weights.pp("conv_in"))?);
    coder.push(TemporalConv::load(channels[1], None, weights.pp("temp_conv_in"))?);
    Ok(())
}

/// Returns a coder without layers.
fn whole_clips() -> Coder<()> {
    Coder::new(TemporalPadding::Centred, Pieces::Whole, [1, 1])
}
