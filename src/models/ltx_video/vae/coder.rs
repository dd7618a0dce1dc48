//! `LTXVideoEncoder3d`: patches, blocks of resnets that reduce the size, mean and one log-variance for all channels.
//! `LTXVideoDecoder3d`: blocks of resnets that increase the size, patches of pixels. From 0.9.1 on it also gets the
//! noise level of its latents, and removes the remaining noise.
//!
//! Convolutions are `LTXVideoCausalConv3d`: 3x3x3 with a border of zeros, the first frame repeated before the clip
//! (causal) or the first and the last at its ends.

use candle_core::{DType, Result, Tensor, bail};

use super::config::{Config, Down, Up};
use super::norm::norm;
use super::resample::{Downsampler, Upsampler};
use super::resnet::{DecoderConditions, Kind, Resnet};
use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, FeatureCache, TemporalPadding};
use crate::nn::embed::TimeEmbedder;
use crate::rng::Rng;

/// Width of a timestep's cosines and sines.
const TIME_PROJ: usize = 256;

pub struct Coder {
    past: TemporalPadding<'static>,
    conv_in: Conv3d,
    layers: Vec<Layer>,
    conv_out: Conv3d,
    time: Option<Time>,
}

/// Timestep conditioning at the end of the decoder.
struct Time {
    timestep_scale_multiplier: Tensor, // ()
    time_embedder: TimeEmbedder,
    scale_shift_table: Tensor, // (2, C) f32
}

enum Layer {
    /// Timestep embedding for the resnets after it.
    Time(TimeEmbedder),
    Resnet(Box<Resnet>),
    Downsampler(Downsampler),
    Upsampler(Upsampler),
}

impl Coder {
    /// Encoder of patches (1, F, H, W, 3 p p) to (1, f, h, w, L + 1).
    pub fn encoder(config: &Config, weights: Weights) -> Result<Self> {
        let kind = Kind {
            eps: config.resnet_norm_eps,
            inject_noise: false,
            timestep_conditioning: false,
        };
        let blocks = config.down_blocks();
        let (first, last) = (blocks[0].inputs, blocks[blocks.len() - 1].outputs);
        let patch = config.in_channels * config.patch_size.pow(2);
        let mut layers = Vec::new();
        for (i, block) in blocks.iter().enumerate() {
            let (&Down { inputs, outputs, .. }, weights) = (block, weights.pp("down_blocks").pp(i));
            layers.extend(resnets(block.layers, inputs, kind, &weights)?);
            if let Some(by) = block.downsample {
                let downsampler = Downsampler::load(by, inputs, outputs, weights.pp("downsamplers.0"))?;
                layers.push(Layer::Downsampler(downsampler));
            }
            if block.conv_out {
                layers.push(resnet(inputs, outputs, kind, weights.pp("conv_out"))?);
            }
        }
        let mid_layers = config.layers_per_block[blocks.len()];
        layers.extend(resnets(mid_layers, last, kind, &weights.pp("mid_block"))?);
        Ok(Self {
            past: past(config.encoder_causal),
            conv_in: Conv3d::causal(patch, first, weights.pp("conv_in.conv"))?,
            layers,
            conv_out: Conv3d::causal(last, config.latent_channels + 1, weights.pp("conv_out.conv"))?,
            time: None,
        })
    }

    /// Decoder of latents (1, f, h, w, L) to patches (1, F, H, W, 3 p p).
    pub fn decoder(config: &Config, weights: Weights) -> Result<Self> {
        let blocks = config.up_blocks();
        let (first, last) = (blocks[0].inputs, blocks[blocks.len() - 1].outputs);
        let kind = |inject_noise| Kind {
            eps: config.resnet_norm_eps,
            inject_noise,
            timestep_conditioning: config.timestep_conditioning,
        };
        let (count, noisy) = (blocks.len(), &config.decoder_inject_noise);
        let mid_layers = config.decoder_layers_per_block[count];
        let mut layers = resnets(mid_layers, first, kind(noisy[count]), &weights.pp("mid_block"))?;
        for (i, block) in blocks.iter().enumerate() {
            let (&Up { inputs, outputs, .. }, weights) = (block, weights.pp("up_blocks").pp(i));
            let kind = kind(block.inject_noise);
            if block.conv_in {
                layers.push(resnet(inputs, outputs, kind, weights.pp("conv_in"))?);
            }
            if block.upsample {
                layers.push(Layer::Upsampler(Upsampler::load(block, weights.pp("upsamplers.0"))?));
            }
            layers.extend(resnets(block.layers, outputs, kind, &weights)?);
        }
        let time = || {
            Ok::<_, candle_core::Error>(Time {
                timestep_scale_multiplier: weights.get((), "timestep_scale_multiplier")?,
                time_embedder: time_embedder(2 * last, &weights)?,
                scale_shift_table: weights.to_dtype(DType::F32).get((2, last), "scale_shift_table")?,
            })
        };
        let patch = config.out_channels * config.patch_size.pow(2);
        Ok(Self {
            past: past(config.decoder_causal),
            conv_in: Conv3d::causal(config.latent_channels, first, weights.pp("conv_in.conv"))?,
            layers,
            conv_out: Conv3d::causal(last, patch, weights.pp("conv_out.conv"))?,
            time: config.timestep_conditioning.then(time).transpose()?,
        })
    }

    /// Processes a whole clip, (1, F, H, W, C) -> (1, F', H', W', C'), with the timestep (1) in 0..1 if the coder takes
    /// one. Takes ownership of x to reuse its memory.
    pub fn forward(&self, x: Tensor, timestep: Option<&Tensor>, rng: &mut Rng) -> Result<Tensor> {
        let timestep = match (&self.time, timestep) {
            (None, None) => None,
            (Some(time), Some(timestep)) => {
                let scale = time.timestep_scale_multiplier.to_dtype(timestep.dtype())?;
                Some(timestep.broadcast_mul(&scale)?)
            }
            (Some(_), None) => bail!("this VAE's decoder needs a timestep"),
            (None, Some(_)) => bail!("this VAE's decoder takes no timestep"),
        };
        let (mut memory, mut conditions) = (FeatureCache::whole(self.past), DecoderConditions { time: None, rng });
        let h = memory.convolve(&self.conv_in, &x, None)?;
        drop(x);
        let mut x = h;
        for layer in &self.layers {
            x = match layer {
                Layer::Time(embedder) => {
                    let rows = |timestep| embedder.forward(timestep)?.reshape((4, ()));
                    conditions.time = timestep.as_ref().map(rows).transpose()?; // (4, C)
                    x
                }
                Layer::Resnet(resnet) => resnet.forward(x, &mut memory, &mut conditions)?,
                Layer::Downsampler(downsampler) => downsampler.forward(x, &mut memory)?,
                Layer::Upsampler(upsampler) => upsampler.forward(x, &mut memory)?,
            };
        }
        let norm_out = match (&self.time, &timestep) {
            (Some(time), Some(timestep)) => {
                let rows = time.time_embedder.forward(timestep)?.reshape((2, ()))?; // (2, C)
                let rows = (&time.scale_shift_table + rows)?;
                norm(&x, Some((&rows.get(0)?, &rows.get(1)?)))?
            }
            _ => norm(&x, None)?,
        };
        memory.convolve(&self.conv_out, &x, Some(&norm_out))
    }
}

/// Loads consecutive resnets that share a timestep embedder.
fn resnets(count: usize, channels: usize, kind: Kind, weights: &Weights) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    if kind.timestep_conditioning {
        layers.push(Layer::Time(time_embedder(4 * channels, weights)?));
    }
    for i in 0..count {
        layers.push(resnet(channels, channels, kind, weights.pp("resnets").pp(i))?);
    }
    Ok(layers)
}

fn resnet(channels: usize, outputs: usize, kind: Kind, weights: Weights) -> Result<Layer> {
    Ok(Layer::Resnet(Box::new(Resnet::load(channels, outputs, kind, weights)?)))
}

/// `PixArtAlphaCombinedTimestepSizeEmbeddings` without sizes; in f32, because it is small and ends in tables.
fn time_embedder(outputs: usize, weights: &Weights) -> Result<TimeEmbedder> {
    let weights = weights.to_dtype(DType::F32);
    TimeEmbedder::new(TIME_PROJ, outputs, weights.pp("time_embedder.timestep_embedder"))
}

fn past(causal: bool) -> TemporalPadding<'static> {
    if causal {
        TemporalPadding::First
    } else {
        TemporalPadding::Centred
    }
}
