//! `CogVideoXDecoder3D`: two resnets in the middle, blocks of resnets that double the size, pixels. Every norm is
//! conditioned on the latents.

use candle_core::{Result, Tensor};

use super::config::Config;
use super::norm::{Norm, Norms};
use super::resample::Resampler;
use crate::nn::conv3d::{Conv3d, FeatureCache};
use crate::nn::{Resnet, Weights};

pub struct Decoder {
    conv_in: Conv3d,
    mid_block: Vec<Resnet<Norm>>,
    up_blocks: Vec<UpBlock>,
    norm_out: Norm,
    conv_out: Conv3d,
}

struct UpBlock {
    resnets: Vec<Resnet<Norm>>,
    upsampler: Option<Resampler>,
}

impl Decoder {
    pub fn load(config: &Config, weights: Weights) -> Result<Self> {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let norms = Norms {
            groups: config.norm_num_groups,
            eps: config.norm_eps,
            latent_channels: Some(config.latent_channels),
        };
        let mut up_blocks = Vec::new();
        let mut channels = first;
        for (i, &outputs) in widths.iter().enumerate() {
            let weights = weights.pp("up_blocks").pp(i);
            let resnets = (0..=config.layers_per_block)
                .map(|layer| {
                    let resnet = norms.resnet([channels, outputs], weights.pp("resnets").pp(layer));
                    channels = outputs;
                    resnet
                })
                .collect::<Result<_>>()?;
            let compress_time = i < config.temporal_compress_level();
            let upsampler = (i + 1 < widths.len())
                .then(|| Resampler::up(outputs, compress_time, weights.pp("upsamplers.0")))
                .transpose()?;
            up_blocks.push(UpBlock { resnets, upsampler });
        }
        Ok(Self {
            conv_in: Conv3d::causal(config.latent_channels, first, weights.pp("conv_in.conv"))?,
            mid_block: (0..2)
                .map(|i| norms.resnet([first, first], weights.pp("mid_block.resnets").pp(i)))
                .collect::<Result<_>>()?,
            up_blocks,
            norm_out: norms.load(last, weights.pp("norm_out"))?,
            conv_out: Conv3d::causal(last, config.out_channels, weights.pp("conv_out.conv"))?,
        })
    }

    /// Decodes one batch of latents, (B, f, h, w, L) -> (B, F, H, W, 3).
    pub fn forward(&self, latents: &Tensor, memory: &mut FeatureCache) -> Result<Tensor> {
        memory.rewind();
        let mut x = memory.convolve(&self.conv_in, latents, None)?;
        for resnet in &self.mid_block {
            x = resnet.forward(x, memory, |norm, x| norm.modulation(x, Some(latents)))?;
        }
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(x, memory, |norm, x| norm.modulation(x, Some(latents)))?;
            }
            if let Some(upsampler) = &block.upsampler {
                x = upsampler.forward(&x)?;
            }
        }
        let norm_out = self.norm_out.modulation(&x, Some(latents))?;
        memory.convolve(&self.conv_out, &x, Some(&norm_out))
    }
}
