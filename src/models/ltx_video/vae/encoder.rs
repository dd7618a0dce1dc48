//! `LTXVideoEncoder3d`: patches, blocks of resnets that make the clip smaller, mean and one log-variance for all
//! channels.

use candle_core::{Result, Tensor};

use super::config::{Config, Down};
use super::conv::{Conv, norm};
use super::resample::Downsampler;
use super::resnet::{Kind, Resnet};
use crate::nn::Weights;
use crate::nn::conv3d::Past;

pub struct Encoder {
    conv_in: Conv,
    down_blocks: Vec<DownBlock>,
    mid_block: Vec<Resnet>,
    conv_out: Conv,
}

struct DownBlock {
    resnets: Vec<Resnet>,
    downsampler: Option<Downsampler>,
    conv_out: Option<Resnet>,
}

impl Encoder {
    pub fn load(config: &Config, weights: Weights) -> Result<Self> {
        let kind = Kind {
            past: if config.encoder_causal {
                Past::First
            } else {
                Past::Centred
            },
            eps: config.resnet_norm_eps,
            inject_noise: false,
            timestep_conditioning: false,
        };
        let blocks = config.down_blocks();
        let (first, last) = (blocks[0].inputs, blocks[blocks.len() - 1].outputs);
        let patch = config.in_channels * config.patch_size.pow(2);
        let mid_layers = config.layers_per_block[blocks.len()];
        Ok(Self {
            conv_in: Conv::load(patch, first, kind.past, weights.pp("conv_in"))?,
            down_blocks: blocks
                .iter()
                .enumerate()
                .map(|(i, block)| DownBlock::load(block, kind, weights.pp("down_blocks").pp(i)))
                .collect::<Result<_>>()?,
            mid_block: Resnet::load_all(mid_layers, last, kind, &weights.pp("mid_block"))?,
            conv_out: Conv::load(last, config.latent_channels + 1, kind.past, weights.pp("conv_out"))?,
        })
    }

    /// Patches (1, F, H, W, 3 p p) -> (1, f, h, w, L + 1)
    pub fn forward(&self, patches: Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(&patches, None)?;
        drop(patches);
        for block in &self.down_blocks {
            x = block.forward(x)?;
        }
        for resnet in &self.mid_block {
            x = resnet.forward(x, None, None)?;
        }
        self.conv_out.forward(&x, Some(&norm(&x)?))
    }
}

impl DownBlock {
    fn load(block: &Down, kind: Kind, weights: Weights) -> Result<Self> {
        let &Down { inputs, outputs, .. } = block;
        let downsampler = |by| Downsampler::load(by, inputs, outputs, kind.past, weights.pp("downsamplers.0"));
        Ok(Self {
            resnets: Resnet::load_all(block.layers, inputs, kind, &weights)?,
            downsampler: block.downsample.map(downsampler).transpose()?,
            conv_out: block
                .conv_out
                .then(|| Resnet::load(inputs, outputs, kind, weights.pp("conv_out")))
                .transpose()?,
        })
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(x, None, None)?;
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(x)?;
        }
        match &self.conv_out {
            Some(resnet) => resnet.forward(x, None, None),
            None => Ok(x),
        }
    }
}
