//! `WanEncoder3d`: resnets and halvings of the size, a middle, mean and log-variance.

use candle_core::{Result, Tensor};

use super::config::Config;
use super::middle::MidBlock;
use super::norm::Norm;
use super::resample::Downsampler;
use super::resnet::Resnet;
use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, Memory};

pub struct Encoder {
    conv_in: Conv3d,
    down_blocks: Vec<Layer>,
    mid_block: MidBlock,
    norm_out: Norm,
    conv_out: Conv3d,
}

/// The checkpoint counts them all in one row.
enum Layer {
    Resnet(Resnet),
    Downsampler(Downsampler),
}

impl Encoder {
    pub fn load(config: &Config, weights: Weights) -> Result<Self> {
        let mut down_blocks = Vec::new();
        let mut channels = config.base_dim;
        for (i, multiple) in config.dim_mult.iter().enumerate() {
            let outputs = config.base_dim * multiple;
            let next = |blocks: &Vec<Layer>| weights.pp("down_blocks").pp(blocks.len());
            for _ in 0..config.num_res_blocks {
                let resnet = Resnet::load(channels, outputs, next(&down_blocks))?;
                down_blocks.push(Layer::Resnet(resnet));
                channels = outputs;
            }
            if let Some(&in_time) = config.temperal_downsample.get(i) {
                let downsampler = Downsampler::load(channels, in_time, next(&down_blocks))?;
                down_blocks.push(Layer::Downsampler(downsampler));
            }
        }
        Ok(Self {
            conv_in: Conv3d::causal(config.in_channels, config.base_dim, weights.pp("conv_in"))?,
            down_blocks,
            mid_block: MidBlock::load(channels, weights.pp("mid_block"))?,
            norm_out: Norm::load(channels, 3, weights.pp("norm_out"))?,
            conv_out: Conv3d::causal(channels, 2 * config.z_dim, weights.pp("conv_out"))?,
        })
    }

    /// One piece of a clip, (B, F, H, W, 3) -> (B, f, h, w, 2 L).
    pub fn forward(&self, frames: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        memory.rewind();
        let mut x = memory.convolve(&self.conv_in, frames, None)?;
        for layer in &self.down_blocks {
            x = match layer {
                Layer::Resnet(resnet) => resnet.forward(x, memory)?,
                Layer::Downsampler(downsampler) => downsampler.forward(&x, memory)?,
            };
        }
        x = self.mid_block.forward(x, memory)?;
        memory.convolve(&self.conv_out, &x, Some(&self.norm_out.modulation(&x)?))
    }
}
