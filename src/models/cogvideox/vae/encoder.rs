//! `CogVideoXEncoder3D`: blocks of resnets that halve the size, two resnets in the middle, mean and log-variance.

use candle_core::{Result, Tensor};

use super::config::Config;
use super::norm::{Norm, Norms};
use super::resample::Resampler;
use crate::nn::conv3d::{Conv3d, FeatureCache};
use crate::nn::{Resnet, Weights};

pub struct Encoder {
    conv_in: Conv3d,
    down_blocks: Vec<DownBlock>,
    mid_block: Vec<Resnet<Norm>>,
    norm_out: Norm,
    conv_out: Conv3d,
}

struct DownBlock {
    resnets: Vec<Resnet<Norm>>,
    downsampler: Option<Resampler>,
}

impl Encoder {
    pub fn load(config: &Config, weights: Weights) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let norms = Norms {
            groups: config.norm_num_groups,
            eps: config.norm_eps,
            latent_channels: None,
        };
        let mut down_blocks = Vec::new();
        let mut channels = first;
        for (i, &outputs) in widths.iter().enumerate() {
            let weights = weights.pp("down_blocks").pp(i);
            let resnets = (0..config.layers_per_block)
                .map(|layer| {
                    let resnet = norms.resnet([channels, outputs], weights.pp("resnets").pp(layer));
                    channels = outputs;
                    resnet
                })
                .collect::<Result<_>>()?;
            let compress_time = i < config.temporal_compress_level();
            let downsampler = (i + 1 < widths.len())
                .then(|| Resampler::down(outputs, compress_time, weights.pp("downsamplers.0")))
                .transpose()?;
            down_blocks.push(DownBlock { resnets, downsampler });
        }
        Ok(Self {
            conv_in: Conv3d::causal(config.in_channels, first, weights.pp("conv_in.conv"))?,
            down_blocks,
            mid_block: (0..2)
                .map(|i| norms.resnet([last, last], weights.pp("mid_block.resnets").pp(i)))
                .collect::<Result<_>>()?,
            norm_out: Norm::group(last, config.norm_num_groups, 1e-6, weights.pp("norm_out"))?,
            conv_out: Conv3d::causal(last, 2 * config.latent_channels, weights.pp("conv_out.conv"))?,
        })
    }

    /// Encodes one batch of frames, (B, F, H, W, 3) -> (B, F', H', W', 2 L).
    pub fn forward(&self, frames: &Tensor, memory: &mut FeatureCache) -> Result<Tensor> {
        memory.rewind();
        let mut x = memory.convolve(&self.conv_in, frames, None)?;
        for block in &self.down_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(x, memory, |norm, x| norm.modulation(x, None))?;
            }
            if let Some(downsampler) = &block.downsampler {
                x = downsampler.forward(&x)?;
            }
        }
        for resnet in &self.mid_block {
            x = resnet.forward(x, memory, |norm, x| norm.modulation(x, None))?;
        }
        let norm_out = self.norm_out.modulation(&x, None)?;
        memory.convolve(&self.conv_out, &x, Some(&norm_out))
    }
}
