//! `CogVideoXEncoder3D`: blocks of resnets that halve the size, two resnets in the middle, mean and log-variance.
//! `CogVideoXDecoder3D`: two resnets in the middle, blocks of resnets that double the size, pixels; every norm is
//! conditioned on the latents.
//!
//! Shapes: B samples, f, h and w frames, rows and columns of latents, L their channels.

use candle_core::{Result, Tensor};

use super::config::Config;
use super::norm::{Norm, Norms};
use crate::models::autoencoder::{Codec, Sizes, Unconditional};
use crate::models::tiling::Tiling;
use crate::nn::Weights;
use crate::nn::coder::{Coder, Layer, NormConv, Pieces};
use crate::nn::conv3d::{Conv3d, FeatureCache, TemporalPadding};
use crate::nn::resampler::Resampler;

/// Frames of a batch.
const SAMPLE_FRAMES: usize = 8;
const LATENT_FRAMES: usize = 2;

/// Latents (B, f, h, w, L) that the decoder's norms are conditioned on.
type State = Option<Tensor>;

/// Keeps its input, the latents (B, f, h, w, L), for the norms of later layers.
struct Condition;

impl Layer<State> for Condition {
    fn forward(&self, x: Tensor, _memory: &mut FeatureCache, state: &mut State) -> Result<Tensor> {
        *state = Some(x.clone());
        Ok(x)
    }
}

impl Unconditional for Config {}

impl Codec for Config {
    type State = State;
    type Statistics = ();

    fn encoder(&self, weights: &Weights) -> Result<Coder<State>> {
        let (root, weights) = (weights, weights.pp("encoder"));
        let norms = Norms {
            groups: self.norm_num_groups,
            eps: self.norm_eps,
            latent_channels: None,
        };
        let resnet = |channels, weights| norms.resnet(channels, weights);
        let widths = &self.block_out_channels;
        let mut channels = widths[0];
        let mut coder = Coder::new(TemporalPadding::First, Pieces::FirstLonger(SAMPLE_FRAMES), [1, 1]);
        coder.push(Conv3d::causal(self.in_channels, channels, weights.pp("conv_in.conv"))?);
        for (i, &outputs) in widths.iter().enumerate() {
            let weights = weights.pp("down_blocks").pp(i);
            let layers = self.layers_per_block;
            coder.extend(layers, [channels, outputs], &weights.pp("resnets"), resnet)?;
            channels = outputs;
            if i + 1 < widths.len() {
                let in_time = i < self.temporal_compress_level();
                coder.push(Resampler::down(channels, in_time, weights.pp("downsamplers.0.conv"))?);
            }
        }
        coder.extend(2, [channels; 2], &weights.pp("mid_block.resnets"), resnet)?;
        let norm_out = Norm::group(channels, self.norm_num_groups, 1e-6, weights.pp("norm_out"))?;
        let sizes = [channels, 2 * self.latent_channels];
        coder.push(NormConv::load(norm_out, sizes, weights.pp("conv_out.conv"))?);
        if self.use_quant_conv {
            let channels = 2 * self.out_channels;
            coder.push(Conv3d::pointwise(channels, channels, root.pp("quant_conv"))?);
        }
        Ok(coder)
    }

    fn decoder(&self, weights: &Weights) -> Result<Coder<State>> {
        let (root, weights) = (weights, weights.pp("decoder"));
        let norms = Norms {
            groups: self.norm_num_groups,
            eps: self.norm_eps,
            latent_channels: Some(self.latent_channels),
        };
        let resnet = |channels, weights| norms.resnet(channels, weights);
        let widths = &self.block_out_channels;
        let mut channels = widths[widths.len() - 1];
        let mut coder = Coder::new(TemporalPadding::First, Pieces::FirstLonger(LATENT_FRAMES), [1, 1]);
        if self.use_post_quant_conv {
            let channels = self.out_channels;
            coder.push(Conv3d::pointwise(channels, channels, root.pp("post_quant_conv"))?);
        }
        coder.push(Condition);
        coder.push(Conv3d::causal(
            self.latent_channels,
            channels,
            weights.pp("conv_in.conv"),
        )?);
        coder.extend(2, [channels; 2], &weights.pp("mid_block.resnets"), resnet)?;
        for (i, &outputs) in widths.iter().rev().enumerate() {
            let weights = weights.pp("up_blocks").pp(i);
            let layers = self.layers_per_block + 1;
            coder.extend(layers, [channels, outputs], &weights.pp("resnets"), resnet)?;
            channels = outputs;
            if i + 1 < widths.len() {
                let in_time = i < self.temporal_compress_level();
                coder.push(Resampler::up([channels; 2], in_time, weights.pp("upsamplers.0.conv"))?);
            }
        }
        let (norm_out, sizes) = (
            norms.load(channels, weights.pp("norm_out"))?,
            [channels, self.out_channels],
        );
        coder.push(NormConv::load(norm_out, sizes, weights.pp("conv_out.conv"))?);
        Ok(coder)
    }

    fn statistics(&self, _weights: &Weights) -> anyhow::Result<()> {
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            channels: self.in_channels,
            latent_channels: self.latent_channels,
            frames: 1,
            side: 1,
            compression: [self.temporal_compression_ratio as usize, self.spatial_compression()],
        }
    }

    fn tiling(&self) -> Tiling {
        Tiling::half_of_sample(self.sample_height, self.sample_width)
    }
}
