//! `WanDecoder3d`: a middle, resnets and doublings of the size (which halve the channels), pixels.

use candle_core::{Result, Tensor};

use super::config::Config;
use super::middle::MidBlock;
use super::norm::Norm;
use super::resample::Upsampler;
use super::resnet::Resnet;
use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, Memory};

pub struct Decoder {
    conv_in: Conv3d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    norm_out: Norm,
    conv_out: Conv3d,
}

struct UpBlock {
    resnets: Vec<Resnet>,
    upsampler: Option<Upsampler>,
}

impl Decoder {
    pub fn load(config: &Config, weights: Weights) -> Result<Self> {
        let widths: Vec<usize> = config.dim_mult.iter().rev().map(|m| config.base_dim * m).collect();
        let mut in_time = config.temperal_downsample.iter().rev();
        let mut up_blocks = Vec::new();
        let mut channels = widths[0];
        for (i, &outputs) in widths.iter().enumerate() {
            let weights = weights.pp("up_blocks").pp(i);
            let resnets = (0..=config.num_res_blocks)
                .map(|layer| {
                    let resnet = Resnet::load(channels, outputs, weights.pp("resnets").pp(layer));
                    channels = outputs;
                    resnet
                })
                .collect::<Result<_>>()?;
            let upsampler = in_time
                .next()
                .map(|&in_time| Upsampler::load(outputs, in_time, weights.pp("upsamplers.0")))
                .transpose()?;
            if upsampler.is_some() {
                channels = outputs / 2;
            }
            up_blocks.push(UpBlock { resnets, upsampler });
        }
        Ok(Self {
            conv_in: Conv3d::causal(config.z_dim, widths[0], weights.pp("conv_in"))?,
            mid_block: MidBlock::load(widths[0], weights.pp("mid_block"))?,
            up_blocks,
            norm_out: Norm::load(channels, 3, weights.pp("norm_out"))?,
            conv_out: Conv3d::causal(channels, config.out_channels, weights.pp("conv_out"))?,
        })
    }

    /// One piece of latents, (B, f, h, w, L) -> (B, F, H, W, 3).
    pub fn forward(&self, latents: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        memory.rewind();
        let mut x = memory.convolve(&self.conv_in, latents, None)?;
        x = self.mid_block.forward(x, memory)?;
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                x = resnet.forward(x, memory)?;
            }
            if let Some(upsampler) = &block.upsampler {
                x = upsampler.forward(x, memory)?;
            }
        }
        memory.convolve(&self.conv_out, &x, Some(&self.norm_out.modulation(&x)?))
    }
}
