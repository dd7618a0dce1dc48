//! `vae/config.json`.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::diffusers_config::{self as config, Rules};

/// Upper limit for blocks, more than any checkpoint has.
const MAX_BLOCKS: usize = 16;
const MAX_PATCH: usize = 64;
const LAYERS: RangeInclusive<usize> = 0..=1 << 10;
const CHANNELS: RangeInclusive<usize> = 1..=1 << 16;

/// Keys of diffusers' `AutoencoderKLLTXVideo`, with its defaults, which are those of 0.9.0. An unknown key might change
/// the computation, and is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Channels of the input frames.
    pub in_channels: usize,
    /// Channels of the decoded frames.
    pub out_channels: usize,
    /// Channels of latents.
    pub latent_channels: usize,
    /// Channels of the encoder's blocks; the decoder's lists are in the encoder's order, too, and are read backwards.
    pub block_out_channels: Vec<usize>,
    /// Kinds of the encoder's blocks.
    pub down_block_types: Vec<DownBlockType>,
    /// Channels of the decoder's blocks.
    pub decoder_block_out_channels: Vec<usize>,
    /// Residual layers of each block, the middle one's last.
    pub layers_per_block: Vec<usize>,
    /// Residual layers of the decoder's blocks, the middle one's last.
    pub decoder_layers_per_block: Vec<usize>,
    /// True for blocks that change the size.
    pub spatio_temporal_scaling: Vec<bool>,
    /// Decoder blocks that change the size.
    pub decoder_spatio_temporal_scaling: Vec<bool>,
    /// Decoder blocks that add noise, the middle one's last.
    pub decoder_inject_noise: Vec<bool>,
    /// Methods by which the encoder's blocks reduce the size.
    pub downsample_type: Vec<DownsampleType>,
    /// Decoder blocks whose upsampling has a shortcut.
    pub upsample_residual: Vec<bool>,
    /// Factors by which upsampling reduces the channels.
    pub upsample_factor: Vec<usize>,
    /// True if the decoder gets the noise level of its latents.
    pub timestep_conditioning: bool,
    /// Rows, and columns, of pixels that are folded into channels.
    pub patch_size: usize,
    /// Epsilon of the residual layers' norms.
    pub resnet_norm_eps: f64,
    /// Factor of normalised latents in the transformer's input.
    pub scaling_factor: f64,
    /// True if the encoder's convolutions see no later frames.
    pub encoder_causal: bool,
    /// True if the decoder's convolutions see no later frames.
    pub decoder_causal: bool,
    /// Pixel rows, and columns, per latent one, if given.
    pub spatial_compression_ratio: Option<usize>,
    /// Frames per latent frame, if given.
    pub temporal_compression_ratio: Option<usize>,
}

/// Kinds of encoder blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    /// Block of versions 0.9.0 and 0.9.1.
    #[serde(rename = "LTXVideoDownBlock3D")]
    V090,
    /// Block of version 0.9.5.
    #[serde(rename = "LTXVideo095DownBlock3D")]
    V095,
}

/// Methods by which an encoder block reduces the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownsampleType {
    /// A convolution with a stride of 2 along all axes.
    Conv,
    /// Two rows and columns, two frames, or all of them are moved into the channels.
    Spatial,
    /// Two frames are moved into the channels.
    Temporal,
    /// Two frames, rows and columns are moved into the channels.
    Spatiotemporal,
}

impl DownsampleType {
    /// Returns the frames, rows and columns that become one.
    pub fn stride(self) -> [usize; 3] {
        match self {
            Self::Conv | Self::Spatiotemporal => [2, 2, 2],
            Self::Spatial => [1, 2, 2],
            Self::Temporal => [2, 1, 1],
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 128,
            block_out_channels: vec![128, 256, 512, 512],
            down_block_types: vec![DownBlockType::V090; 4],
            decoder_block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: vec![4, 3, 3, 3, 4],
            decoder_layers_per_block: vec![4, 3, 3, 3, 4],
            spatio_temporal_scaling: vec![true, true, true, false],
            decoder_spatio_temporal_scaling: vec![true, true, true, false],
            decoder_inject_noise: vec![false; 5],
            downsample_type: vec![DownsampleType::Conv; 4],
            upsample_residual: vec![false; 4],
            upsample_factor: vec![1; 4],
            timestep_conditioning: false,
            patch_size: 4,
            resnet_norm_eps: 1e-6,
            scaling_factor: 1.0,
            encoder_causal: true,
            decoder_causal: false,
            spatial_compression_ratio: None,
            temporal_compression_ratio: None,
        }
    }
}

/// A block of the encoder.
#[derive(Debug, Clone, Copy)]
pub struct Down {
    pub inputs: usize,
    pub outputs: usize,
    pub layers: usize,
    pub downsample: Option<DownsampleType>,
    /// True if a resnet at the end changes the channels (up to 0.9.1), false if the downsampler does.
    pub conv_out: bool,
}

/// A block of the decoder.
#[derive(Debug, Clone, Copy)]
pub struct Up {
    /// Output channels of the previous block.
    pub inputs: usize,
    pub outputs: usize,
    pub layers: usize,
    /// True if a resnet at the beginning changes the channels.
    pub conv_in: bool,
    pub upsample: bool,
    pub residual: bool,
    /// Factor by which the upsampler reduces the channels.
    pub factor: usize,
    pub inject_noise: bool,
}

impl Down {
    fn fits(&self) -> bool {
        let &Self { inputs, outputs, .. } = self;
        match self.downsample {
            _ if self.conv_out => true,
            None | Some(DownsampleType::Conv) => inputs == outputs,
            Some(kind) => {
                let pixels: usize = kind.stride().iter().product();
                outputs.is_multiple_of(pixels) && (inputs * pixels).is_multiple_of(outputs)
            }
        }
    }
}

impl Up {
    /// A resnet at the beginning supports neither timestep nor noise.
    fn fits(&self, timestep_conditioning: bool) -> bool {
        let seen = if self.conv_in { self.outputs } else { self.inputs };
        let read = self.outputs * if self.upsample { self.factor } else { 1 };
        let bare = !timestep_conditioning && !self.inject_noise && self.factor == 1;
        let repeats = seen.is_multiple_of(8) && 8 % self.factor == 0;
        seen == read && (bare || !self.conv_in) && (repeats || !(self.residual && self.upsample))
    }
}

impl Config {
    fn is_095(&self) -> bool {
        self.down_block_types.first() == Some(&DownBlockType::V095)
    }

    /// Returns the encoder's blocks, from the clip to the latents.
    pub fn down_blocks(&self) -> Vec<Down> {
        let widths = &self.block_out_channels;
        (0..self.down_block_types.len())
            .map(|i| {
                let (inputs, outputs) = (widths[i], widths[(i + 1).min(widths.len() - 1)]);
                let kind = match self.is_095() {
                    true => self.downsample_type[i],
                    false => DownsampleType::Conv,
                };
                Down {
                    inputs,
                    outputs,
                    layers: self.layers_per_block[i],
                    downsample: self.spatio_temporal_scaling[i].then_some(kind),
                    conv_out: !self.is_095() && inputs != outputs,
                }
            })
            .collect()
    }

    /// Returns the decoder's blocks, from the latents to the clip: the lists' last entries first.
    pub fn up_blocks(&self) -> Vec<Up> {
        let widths = &self.decoder_block_out_channels;
        let mut inputs = widths[widths.len() - 1];
        let block = |i: usize| {
            let factor = self.upsample_factor[i];
            let outputs = widths[i] / factor;
            let block = Up {
                inputs,
                outputs,
                layers: self.decoder_layers_per_block[i],
                conv_in: inputs / factor != outputs,
                upsample: self.decoder_spatio_temporal_scaling[i],
                residual: self.upsample_residual[i],
                factor,
                inject_noise: self.decoder_inject_noise[i],
            };
            inputs = outputs;
            block
        };
        (0..widths.len()).rev().map(block).collect()
    }

    /// Returns the pixel rows, and columns, per latent one.
    pub fn spatial_compression(&self) -> usize {
        self.patch_size * self.compression(1)
    }

    /// Returns the frames per latent frame, except the first, which is separate.
    pub fn temporal_compression(&self) -> usize {
        self.compression(0)
    }

    fn compression(&self, axis: usize) -> usize {
        let blocks = self.down_blocks();
        let kinds = blocks.iter().filter_map(|block| block.downsample);
        kinds.map(|kind| kind.stride()[axis]).product()
    }

    /// Checks that each block fits the previous one, and that the decoder inverts the encoder's sizes.
    fn check_blocks(&self) -> Vec<String> {
        let (downs, ups) = (self.down_blocks(), self.up_blocks());
        let down_fits = |(i, block): (usize, &Down)| {
            let (inputs, outputs, kind) = (block.inputs, block.outputs, block.downsample);
            (!block.fits()).then(|| format!(
                "block_out_channels: block {i} can not make {outputs} channels of {inputs} by downsample_type {kind:?}"
            ))
        };
        let up_fits = |(i, block): (usize, &Up)| {
            (!block.fits(self.timestep_conditioning))
                .then(|| format!("decoder_block_out_channels: up block {i} does not fit the one before it: {block:?}"))
        };
        let doublings = ups.iter().filter(|block| block.upsample).count();
        let (space, time) = (self.spatial_compression_ratio, self.temporal_compression_ratio);
        let (pixels, frames) = (self.spatial_compression(), self.temporal_compression());
        let compression = [
            ("spatial", space, pixels, self.patch_size << doublings),
            ("temporal", time, frames, 1 << doublings),
        ];
        let agrees = |(axes, ratio, found, decoder): (&str, Option<usize>, usize, usize)| {
            let ratio = ratio.unwrap_or(found);
            (found != decoder || ratio != found).then(|| format!(
                "{axes}_compression_ratio is {ratio}, but the encoder makes one of {found}, and the decoder {decoder} of one"
            ))
        };
        let wrong = downs.iter().enumerate().filter_map(down_fits);
        let wrong = wrong.chain(ups.iter().enumerate().filter_map(up_fits));
        wrong.chain(compression.into_iter().filter_map(agrees)).collect()
    }
}

impl config::Config for Config {
    const CLASS: &str = "AutoencoderKLLTXVideo";
    const FIXED: &[(&str, &str, &str)] = &[("patch_size_t", "1", "as in all checkpoints")];

    fn check(&self) -> Vec<String> {
        let (downs, ups) = (self.down_block_types.len(), self.decoder_block_out_channels.len());
        let alike = self.down_block_types.windows(2).all(|two| two[0] == two[1]);
        Rules::of(self)
            .between(&["in_channels", "out_channels", "latent_channels"], CHANNELS)
            .between(&["block_out_channels", "decoder_block_out_channels"], CHANNELS)
            .between(&["layers_per_block", "decoder_layers_per_block"], LAYERS)
            .between(&["patch_size"], 1..=MAX_PATCH)
            .between(&["upsample_factor"], 1..=8)
            .above_zero(&["scaling_factor", "resnet_norm_eps"])
            .length(&["down_block_types"], downs.clamp(1, MAX_BLOCKS))
            .length(&["decoder_block_out_channels"], ups.clamp(1, MAX_BLOCKS))
            .length(&["block_out_channels"], downs + usize::from(self.is_095()))
            .length(&["layers_per_block"], downs + 1)
            .length(&["downsample_type", "spatio_temporal_scaling"], downs)
            .length(&["decoder_layers_per_block", "decoder_inject_noise"], ups + 1)
            .length(&["decoder_spatio_temporal_scaling"], ups)
            .length(&["upsample_residual", "upsample_factor"], ups)
            .must("down_block_types", alike, "all the same")
            .then(|| self.check_blocks())
            .wrong()
    }
}
