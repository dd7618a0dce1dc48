//! `LTXVideoEncoder3d`: patches, blocks of resnets that reduce the size, mean and one log-variance for all channels.
//! `LTXVideoDecoder3d`: blocks of resnets that increase the size, patches of pixels. From 0.9.1 on it also gets the
//! noise level of its latents, and removes the remaining noise.
//!
//! Convolutions are `LTXVideoCausalConv3d`: 3x3x3 with a border of zeros, the first frame repeated before the clip
//! (causal) or the first and the last at its ends.
//!
//! Shapes: F frames, H rows, W columns, p the size of a patch, L channels of latents; f, h, w the latents' size.

use candle_core::{DType, Result, Tensor};

use super::config::{Config, Down, DownsampleType, Up};
use super::resnet::{EmbedTime, Kind, Norm, State};
use crate::diffusion::posterior::Posterior;
use crate::models::autoencoder::{Codec, Sizes};
use crate::models::latent_norm::LatentNorm;
use crate::models::tiling::Tiling;
use crate::nn::Weights;
use crate::nn::coder::{Coder, NormConv, Pieces};
use crate::nn::conv3d::{Conv3d, TemporalPadding};
use crate::nn::pixel_resampler::{PixelDownsampler, PixelUpsampler, strided};

/// Latent frames of a piece.
const LATENT_FRAMES: usize = 4;

impl Codec for Config {
    type State = State;
    type Statistics = LatentNorm;

    const ALONE: bool = true;

    /// Encoder of patches (1, F, H, W, 3 p p) to (1, f, h, w, L + 1).
    fn encoder(&self, weights: &Weights) -> Result<Coder<State>> {
        let weights = &weights.pp("encoder");
        let kind = Kind {
            eps: self.resnet_norm_eps,
            ..Kind::default()
        };
        let blocks = self.down_blocks();
        let (first, last) = (blocks[0].inputs, blocks[blocks.len() - 1].outputs);
        let pieces = match self.encoder_causal {
            true => Pieces::FirstAlone(self.temporal_compression()),
            false => Pieces::Whole,
        };
        let mut coder = Coder::new(past(self.encoder_causal), pieces, [self.patch_size, 1]);
        let patch = self.in_channels * self.patch_size.pow(2);
        coder.push(Conv3d::causal(patch, first, weights.pp("conv_in.conv"))?);
        for (i, block) in blocks.iter().enumerate() {
            let (&Down { inputs, outputs, .. }, weights) = (block, weights.pp("down_blocks").pp(i));
            resnets(&mut coder, block.layers, inputs, kind, &weights)?;
            let down = weights.pp("downsamplers.0");
            match block.downsample {
                None => {}
                Some(DownsampleType::Conv) => coder.push(strided(inputs, 2, down.pp("conv"))?),
                Some(kind) => coder.push(PixelDownsampler::load(kind.stride(), [inputs, outputs], down)?),
            }
            if block.conv_out {
                coder.push(kind.resnet([inputs, outputs], weights.pp("conv_out"))?);
            }
        }
        let mid_layers = self.layers_per_block[blocks.len()];
        resnets(&mut coder, mid_layers, last, kind, &weights.pp("mid_block"))?;
        let sizes = [last, self.latent_channels + 1];
        coder.push(NormConv::load(Norm::default(), sizes, weights.pp("conv_out.conv"))?);
        Ok(coder)
    }

    /// Decoder of latents (1, f, h, w, L) to patches (1, F, H, W, 3 p p).
    fn decoder(&self, weights: &Weights) -> Result<Coder<State>> {
        let weights = &weights.pp("decoder");
        let scale = || weights.get((), "timestep_scale_multiplier");
        let scale = self.timestep_conditioning.then(scale).transpose()?;
        let kind = |inject_noise| Kind {
            eps: self.resnet_norm_eps,
            inject_noise,
            timestep_scale: scale.as_ref(),
            scope: 0,
        };
        let blocks = self.up_blocks();
        let (first, last) = (blocks[0].inputs, blocks[blocks.len() - 1].outputs);
        let mut coder = Coder::new(
            past(self.decoder_causal),
            Pieces::Even(LATENT_FRAMES),
            [1, self.patch_size],
        );
        coder.push(Conv3d::causal(self.latent_channels, first, weights.pp("conv_in.conv"))?);
        let (count, noisy) = (blocks.len(), &self.decoder_inject_noise);
        let (mid_layers, mid_block) = (self.decoder_layers_per_block[count], weights.pp("mid_block"));
        resnets(&mut coder, mid_layers, first, kind(noisy[count]), &mid_block)?;
        for (i, block) in blocks.iter().enumerate() {
            let (&Up { inputs, outputs, .. }, weights) = (block, weights.pp("up_blocks").pp(i));
            let kind = kind(block.inject_noise);
            if block.conv_in {
                coder.push(kind.resnet([inputs, outputs], weights.pp("conv_in"))?);
            }
            if block.upsample {
                let widths = [outputs * block.factor, outputs];
                coder.push(PixelUpsampler::load(
                    block.residual,
                    widths,
                    weights.pp("upsamplers.0"),
                )?);
            }
            resnets(&mut coder, block.layers, outputs, kind, &weights)?;
        }
        let mut norm = Norm::default();
        if let Some(scale) = &scale {
            norm.scope = coder.len();
            coder.push(EmbedTime::load(scale, norm.scope, [2, last], weights)?);
            norm.scale_shift_table = Some(weights.to_dtype(DType::F32).get((2, last), "scale_shift_table")?);
        }
        let patch = self.out_channels * self.patch_size.pow(2);
        coder.push(NormConv::load(norm, [last, patch], weights.pp("conv_out.conv"))?);
        Ok(coder)
    }

    fn statistics(&self, weights: &Weights) -> anyhow::Result<LatentNorm> {
        LatentNorm::new(self.latent_channels, self.scaling_factor, weights)
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            channels: self.in_channels,
            latent_channels: self.latent_channels,
            frames: self.temporal_compression(),
            side: self.spatial_compression(),
            compression: [self.temporal_compression(), self.spatial_compression()],
        }
    }

    fn tiling(&self) -> Tiling {
        Tiling::square(512, 448)
    }

    /// All channels of a pixel share one log-variance.
    fn posterior(&self, moments: &Tensor) -> Result<Posterior> {
        let logvar = moments.narrow(1, self.latent_channels, 1)?;
        let others = logvar.repeat((1, self.latent_channels - 1, 1, 1, 1))?;
        Posterior::new(&Tensor::cat(&[moments, &others], 1)?)
    }
}

/// Adds resnets that share an embedding of the timestep.
fn resnets(coder: &mut Coder<State>, count: usize, channels: usize, kind: Kind, weights: &Weights) -> Result<()> {
    let scope = coder.len();
    if let Some(scale) = kind.timestep_scale {
        coder.push(EmbedTime::load(scale, scope, [4, channels], weights)?);
    }
    let kind = Kind { scope, ..kind };
    let resnet = |channels, weights| kind.resnet(channels, weights);
    coder.extend(count, [channels; 2], &weights.pp("resnets"), resnet)
}

fn past(causal: bool) -> TemporalPadding<'static> {
    match causal {
        true => TemporalPadding::First,
        false => TemporalPadding::Centred,
    }
}
