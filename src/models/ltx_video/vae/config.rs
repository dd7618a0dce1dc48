//! `vae/config.json`.

use std::ops::RangeInclusive;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::nn::config::{self, Rules};

/// More than any checkpoint has.
const MAX_BLOCKS: usize = 16;
const LAYERS: RangeInclusive<usize> = 0..=1 << 10;
const CHANNELS: RangeInclusive<usize> = 1..=1 << 16;

/// The keys of diffusers' `AutoencoderKLLTXVideo`, with its defaults, which are those of 0.9.0. A key that is not here
/// might change what is computed, and is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    /// Of the encoder; the decoder's lists are in the encoder's order, too, and are read backwards.
    pub block_out_channels: Vec<usize>,
    pub down_block_types: Vec<DownBlockType>,
    pub decoder_block_out_channels: Vec<usize>,
    /// One entry for each block and one for the block in the middle, which is the last.
    pub layers_per_block: Vec<usize>,
    pub decoder_layers_per_block: Vec<usize>,
    /// Which blocks change the size.
    pub spatio_temporal_scaling: Vec<bool>,
    pub decoder_spatio_temporal_scaling: Vec<bool>,
    pub decoder_inject_noise: Vec<bool>,
    pub downsample_type: Vec<DownsampleType>,
    pub upsample_residual: Vec<bool>,
    pub upsample_factor: Vec<usize>,
    /// Whether the decoder is told how noisy its latents are.
    pub timestep_conditioning: bool,
    pub patch_size: usize,
    pub patch_size_t: usize,
    pub resnet_norm_eps: f64,
    /// The transformer sees normalised latents times this.
    pub scaling_factor: f64,
    pub encoder_causal: bool,
    pub decoder_causal: bool,
    pub spatial_compression_ratio: Option<usize>,
    pub temporal_compression_ratio: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    #[serde(rename = "LTXVideoDownBlock3D")]
    V090,
    #[serde(rename = "LTXVideo095DownBlock3D")]
    V095,
}

/// How a block of the encoder makes its clip smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownsampleType {
    /// A convolution with a stride of 2 along all axes.
    Conv,
    /// Two rows and columns, two frames, or all of them go into the channels.
    Spatial,
    Temporal,
    Spatiotemporal,
}

impl DownsampleType {
    /// How many frames, rows and columns become one.
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
            patch_size_t: 1,
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
    /// Whether a resnet at the end changes the channels (up to 0.9.1), or the downsampler does.
    pub conv_out: bool,
}

/// A block of the decoder.
#[derive(Debug, Clone, Copy)]
pub struct Up {
    /// What the block before it hands over.
    pub inputs: usize,
    pub outputs: usize,
    pub layers: usize,
    /// Whether a resnet at the beginning changes the channels.
    pub conv_in: bool,
    pub upsample: bool,
    pub residual: bool,
    /// The upsampler leaves so many times fewer channels.
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
    /// A resnet at the beginning hears no timestep, and gets no noise.
    fn fits(&self, timestep_conditioning: bool) -> bool {
        let seen = if self.conv_in { self.outputs } else { self.inputs };
        let read = self.outputs * if self.upsample { self.factor } else { 1 };
        let bare = !timestep_conditioning && !self.inject_noise && self.factor == 1;
        let repeats = seen.is_multiple_of(8) && 8 % self.factor == 0;
        seen == read && (bare || !self.conv_in) && (repeats || !(self.residual && self.upsample))
    }
}

impl Config {
    /// Reads and checks `config.json` in `folder`.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        config::read(folder)
    }

    fn is_095(&self) -> bool {
        self.down_block_types.first() == Some(&DownBlockType::V095)
    }

    /// The encoder's blocks, from the clip to the latents.
    pub fn down_blocks(&self) -> Vec<Down> {
        let widths = &self.block_out_channels;
        (0..self.down_block_types.len())
            .map(|i| {
                let (inputs, outputs) = (widths[i], widths[(i + 1).min(widths.len() - 1)]);
                let kind = if self.is_095() {
                    self.downsample_type[i]
                } else {
                    DownsampleType::Conv
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

    /// The decoder's blocks, from the latents to the clip: the lists' last entries first.
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

    /// How many pixels in a row become one.
    pub fn spatial_compression(&self) -> usize {
        self.patch_size * self.compression(1)
    }

    /// How many frames become one, after the first, which stays alone.
    pub fn temporal_compression(&self) -> usize {
        self.compression(0)
    }

    fn compression(&self, axis: usize) -> usize {
        let blocks = self.down_blocks();
        let kinds = blocks.iter().filter_map(|block| block.downsample);
        kinds.map(|kind| kind.stride()[axis]).product()
    }
}

impl config::Config for Config {
    const CLASS: &str = "AutoencoderKLLTXVideo";

    fn check(&self) -> Vec<String> {
        let (downs, ups) = (self.down_block_types.len(), self.decoder_block_out_channels.len());
        Rules::of(self)
            .between(&["in_channels", "out_channels", "latent_channels"], CHANNELS)
            .between(&["block_out_channels", "decoder_block_out_channels"], CHANNELS)
            .between(&["layers_per_block", "decoder_layers_per_block"], LAYERS)
            .between(&["patch_size"], 1..=64)
            .between(&["patch_size_t"], 1..=1)
            .between(&["upsample_factor"], 1..=8)
            .above_zero(&["scaling_factor", "resnet_norm_eps"])
            .length(&["down_block_types"], downs.clamp(1, MAX_BLOCKS))
            .length(&["decoder_block_out_channels"], ups.clamp(1, MAX_BLOCKS))
            .length(&["block_out_channels"], downs + usize::from(self.is_095()))
            .length(&["layers_per_block"], downs + 1)
            .length(&["downsample_type", "spatio_temporal_scaling"], downs)
            .length(&["decoder_layers_per_block", "decoder_inject_noise"], ups + 1)
            .length(
                &[
                    "decoder_spatio_temporal_scaling",
                    "upsample_residual",
                    "upsample_factor",
                ],
                ups,
            )
            .must(
                "down_block_types",
                self.down_block_types.windows(2).all(|two| two[0] == two[1]),
                "all the same",
            )
            .then(|| self.check_blocks())
            .wrong()
    }
}

impl Config {
    /// Whether each block can read what the one before it writes, and the decoder makes what the encoder takes.
    fn check_blocks(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (i, block) in self.down_blocks().iter().enumerate().filter(|(_, block)| !block.fits()) {
            let Down {
                inputs,
                outputs,
                downsample,
                ..
            } = block;
            wrong.push(format!(
                "block_out_channels: block {i} can not make {outputs} channels of {inputs} by downsample_type {downsample:?}"
            ));
        }
        let misfit = |block: &Up| !block.fits(self.timestep_conditioning);
        for (i, block) in self.up_blocks().iter().enumerate().filter(|(_, block)| misfit(block)) {
            wrong.push(format!(
                "decoder_block_out_channels: up block {i} does not fit the one before it: {block:?}"
            ));
        }
        let ups = self.up_blocks().iter().filter(|block| block.upsample).count();
        let agrees = |key: &str, ratio: Option<usize>, found, decoder| {
            let ratio = ratio.unwrap_or(found);
            (found != decoder || ratio != found).then(|| {
                format!("{key} is {ratio}, but the encoder makes one of {found}, and the decoder {decoder} of one")
            })
        };
        let (space, time) = (self.spatial_compression_ratio, self.temporal_compression_ratio);
        wrong.extend(agrees(
            "spatial_compression_ratio",
            space,
            self.spatial_compression(),
            self.patch_size << ups,
        ));
        wrong.extend(agrees(
            "temporal_compression_ratio",
            time,
            self.temporal_compression(),
            1 << ups,
        ));
        wrong
    }
}
