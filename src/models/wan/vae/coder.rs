//! `WanEncoder3d`: resnets that halve the size, then the middle. `WanDecoder3d`: the middle, then resnets that double
//! the size and halve the channels.
//!
//! Letters: B batch, F frames, H rows, W columns, C channels.

use candle_core::{Result, Tensor};

use super::attention::Attention;
use super::config::Config;
use super::norm::Norm;
use super::resample::Resampler;
use crate::nn::conv3d::{Conv3d, FeatureCache};
use crate::nn::{Resnet, Weights};

pub struct Coder {
    conv_in: Conv3d,
    layers: Vec<Layer>,
    norm_out: Norm,
    conv_out: Conv3d,
}

enum Layer {
    Resnet(Box<Resnet<Norm>>),
    Attention(Attention),
    Downsampler(Resampler),
    Upsampler(Resampler),
}

impl Coder {
    /// Encoder of clips (.., 3) to mean and log-variance (.., 2 L).
    pub fn encoder(config: &Config, weights: Weights) -> Result<Self> {
        let mut layers = Vec::new();
        let mut channels = config.base_dim;
        for (i, multiple) in config.dim_mult.iter().enumerate() {
            // The checkpoint numbers all layers consecutively.
            let next = |layers: &Vec<Layer>| weights.pp("down_blocks").pp(layers.len());
            let outputs = config.base_dim * multiple;
            for _ in 0..config.num_res_blocks {
                layers.push(resnet(channels, outputs, next(&layers))?);
                channels = outputs;
            }
            if let Some(&in_time) = config.temperal_downsample.get(i) {
                let downsampler = Resampler::down(channels, in_time, next(&layers))?;
                layers.push(Layer::Downsampler(downsampler));
            }
        }
        layers.extend(mid_block(channels, weights.pp("mid_block"))?);
        Ok(Self {
            conv_in: Conv3d::causal(config.in_channels, config.base_dim, weights.pp("conv_in"))?,
            layers,
            norm_out: Norm::load(channels, 3, weights.pp("norm_out"))?,
            conv_out: Conv3d::causal(channels, 2 * config.z_dim, weights.pp("conv_out"))?,
        })
    }

    /// Decoder of latents (.., L) to clips (.., 3).
    pub fn decoder(config: &Config, weights: Weights) -> Result<Self> {
        let first = config.base_dim * config.dim_mult[config.dim_mult.len() - 1];
        let mut layers = Vec::from(mid_block(first, weights.pp("mid_block"))?);
        let mut channels = first;
        let mut in_time = config.temperal_downsample.iter().rev();
        for (i, multiple) in config.dim_mult.iter().rev().enumerate() {
            let weights = weights.pp("up_blocks").pp(i);
            let outputs = config.base_dim * multiple;
            for j in 0..=config.num_res_blocks {
                layers.push(resnet(channels, outputs, weights.pp("resnets").pp(j))?);
                channels = outputs;
            }
            if let Some(&in_time) = in_time.next() {
                let upsampler = Resampler::up(channels, in_time, weights.pp("upsamplers.0"))?;
                layers.push(Layer::Upsampler(upsampler));
                channels /= 2;
            }
        }
        Ok(Self {
            conv_in: Conv3d::causal(config.z_dim, first, weights.pp("conv_in"))?,
            layers,
            norm_out: Norm::load(channels, 3, weights.pp("norm_out"))?,
            conv_out: Conv3d::causal(channels, config.out_channels, weights.pp("conv_out"))?,
        })
    }

    /// Processes one piece of a clip, (B, F, H, W, C) -> (B, F', H', W', C').
    pub fn forward(&self, piece: &Tensor, memory: &mut FeatureCache) -> Result<Tensor> {
        memory.rewind();
        let mut x = memory.convolve(&self.conv_in, piece, None)?;
        for layer in &self.layers {
            x = match layer {
                Layer::Resnet(resnet) => resnet.forward(x, memory, Norm::modulation)?,
                Layer::Attention(attention) => attention.forward(x)?,
                Layer::Downsampler(downsampler) => downsampler.halve(&x, memory)?,
                Layer::Upsampler(upsampler) => upsampler.double(x, memory)?,
            };
        }
        memory.convolve(&self.conv_out, &x, Some(&self.norm_out.modulation(&x)?))
    }
}

/// `WanMidBlock`: attention between two resnets.
fn mid_block(channels: usize, weights: Weights) -> Result<[Layer; 3]> {
    Ok([
        resnet(channels, channels, weights.pp("resnets.0"))?,
        Layer::Attention(Attention::load(channels, weights.pp("attentions.0"))?),
        resnet(channels, channels, weights.pp("resnets.1"))?,
    ])
}

fn resnet(channels: usize, outputs: usize, weights: Weights) -> Result<Layer> {
    let norm = |channels, weights| Norm::load(channels, 3, weights);
    let resnet = Resnet::load([channels, outputs], ["conv1", "conv2"], norm, weights)?;
    Ok(Layer::Resnet(Box::new(resnet)))
}
