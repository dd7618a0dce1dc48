//! `LTXVideoDecoder3d`: blocks of resnets that make the clip larger, patches of pixels. From 0.9.1 on it is also told how
//! much noise its latents have, and takes the last of it off.

use candle_core::{Result, Tensor, bail};

use super::config::{Config, Up};
use super::conv::{Conv, modulated_norm, norm};
use super::resample::Upsampler;
use super::resnet::{Kind, Resnet};
use super::time::TimeEmbedder;
use crate::nn::Weights;
use crate::nn::conv3d::Past;
use crate::rng::Rng;

pub struct Decoder {
    conv_in: Conv,
    mid_block: Resnets,
    up_blocks: Vec<UpBlock>,
    conv_out: Conv,
    time: Option<Time>,
}

/// What the decoder knows about timesteps.
struct Time {
    timestep_scale_multiplier: Tensor, // ()
    time_embedder: TimeEmbedder,
    scale_shift_table: Tensor, // (2, C)
}

struct UpBlock {
    conv_in: Option<Resnet>,
    upsampler: Option<Upsampler>,
    resnets: Resnets,
}

/// Resnets that hear the timestep from the same embedder.
struct Resnets {
    time_embedder: Option<TimeEmbedder>,
    resnets: Vec<Resnet>,
}

impl Decoder {
    pub fn load(config: &Config, weights: Weights) -> Result<Self> {
        let blocks = config.up_blocks();
        let (first, last) = (blocks[0].inputs, blocks[blocks.len() - 1].outputs);
        let kind = Kind {
            past: if config.decoder_causal {
                Past::First
            } else {
                Past::Centred
            },
            eps: config.resnet_norm_eps,
            inject_noise: config.decoder_inject_noise[blocks.len()],
            timestep_conditioning: config.timestep_conditioning,
        };
        let mid_layers = config.decoder_layers_per_block[blocks.len()];
        let time = || {
            Ok::<_, candle_core::Error>(Time {
                timestep_scale_multiplier: weights.get((), "timestep_scale_multiplier")?,
                time_embedder: TimeEmbedder::load(2, last, &weights)?,
                scale_shift_table: weights.get((2, last), "scale_shift_table")?,
            })
        };
        let patch = config.out_channels * config.patch_size.pow(2);
        Ok(Self {
            conv_in: Conv::load(config.latent_channels, first, kind.past, weights.pp("conv_in"))?,
            mid_block: Resnets::load(mid_layers, first, kind, &weights.pp("mid_block"))?,
            up_blocks: blocks
                .iter()
                .enumerate()
                .map(|(i, block)| UpBlock::load(block, kind, weights.pp("up_blocks").pp(i)))
                .collect::<Result<_>>()?,
            conv_out: Conv::load(last, patch, kind.past, weights.pp("conv_out"))?,
            time: config.timestep_conditioning.then(time).transpose()?,
        })
    }

    /// Latents (1, f, h, w, L) and their timestep (1) in 0..1 -> (1, F, H, W, 3 p p)
    pub fn forward(&self, latents: &Tensor, timestep: Option<&Tensor>, rng: &mut Rng) -> Result<Tensor> {
        let timestep = match (&self.time, timestep) {
            (None, None) => None,
            (Some(time), Some(timestep)) => {
                let scale = time.timestep_scale_multiplier.to_dtype(timestep.dtype())?;
                Some(timestep.broadcast_mul(&scale)?)
            }
            (Some(_), None) => bail!("this VAE's decoder needs a timestep"),
            (None, Some(_)) => bail!("this VAE's decoder takes no timestep"),
        };
        let timestep = timestep.as_ref();
        let mut x = self.conv_in.forward(latents, None)?;
        x = self.mid_block.forward(x, timestep, rng)?;
        for block in &self.up_blocks {
            x = block.forward(x, timestep, rng)?;
        }
        let norm_out = match (&self.time, timestep) {
            (Some(time), Some(timestep)) => {
                let rows = (&time.scale_shift_table + time.time_embedder.forward(timestep, &x)?)?;
                modulated_norm(&rows.get(0)?, &rows.get(1)?, &x)?
            }
            _ => norm(&x)?,
        };
        self.conv_out.forward(&x, Some(&norm_out))
    }
}

impl Resnets {
    fn load(count: usize, channels: usize, kind: Kind, weights: &Weights) -> Result<Self> {
        Ok(Self {
            time_embedder: kind
                .timestep_conditioning
                .then(|| TimeEmbedder::load(4, channels, weights))
                .transpose()?,
            resnets: Resnet::load_all(count, channels, kind, weights)?,
        })
    }

    fn forward(&self, mut x: Tensor, timestep: Option<&Tensor>, rng: &mut Rng) -> Result<Tensor> {
        let time = match (&self.time_embedder, timestep) {
            (Some(embedder), Some(timestep)) => Some(embedder.forward(timestep, &x)?), // (4, C)
            _ => None,
        };
        for resnet in &self.resnets {
            x = resnet.forward(x, time.as_ref(), Some(rng))?;
        }
        Ok(x)
    }
}

impl UpBlock {
    fn load(block: &Up, kind: Kind, weights: Weights) -> Result<Self> {
        let kind = Kind {
            inject_noise: block.inject_noise,
            ..kind
        };
        Ok(Self {
            conv_in: block
                .conv_in
                .then(|| Resnet::load(block.inputs, block.outputs, kind, weights.pp("conv_in")))
                .transpose()?,
            upsampler: block
                .upsample
                .then(|| Upsampler::load(block, kind.past, weights.pp("upsamplers.0")))
                .transpose()?,
            resnets: Resnets::load(block.layers, block.outputs, kind, &weights)?,
        })
    }

    fn forward(&self, mut x: Tensor, timestep: Option<&Tensor>, rng: &mut Rng) -> Result<Tensor> {
        if let Some(resnet) = &self.conv_in {
            x = resnet.forward(x, None, Some(rng))?;
        }
        if let Some(upsampler) = &self.upsampler {
            x = upsampler.forward(x)?;
        }
        self.resnets.forward(x, timestep, rng)
    }
}
