//! `vae/config.json`.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;

/// A config.json larger than this is none.
const MAX_BYTES: u64 = 1 << 20;
const CLASS: &str = "AutoencoderKLLTXVideo";
/// More than any checkpoint has.
const MAX_BLOCKS: usize = 16;
const LAYERS: [usize; 2] = [0, 1 << 10];
const CHANNELS: [usize; 2] = [1, 1 << 16];

/// The keys of diffusers' `AutoencoderKLLTXVideo`, with its defaults, which are those of 0.9.0. A key that is not here
/// might change what is computed, and is an error.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Says who wrote the file.
    #[serde(rename = "_diffusers_version")]
    pub diffusers_version: String,
    /// Says where the file came from.
    #[serde(rename = "_name_or_path")]
    pub name_or_path: String,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DownBlockType {
    #[serde(rename = "LTXVideoDownBlock3D")]
    V090,
    #[serde(rename = "LTXVideo095DownBlock3D")]
    V095,
}

/// How a block of the encoder makes its clip smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
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
            class_name: CLASS.into(),
            diffusers_version: String::new(),
            name_or_path: String::new(),
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

impl Config {
    /// Reads and checks `config.json` in `folder`.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("config.json");
        let shown = path.display();
        let size = std::fs::metadata(&path).with_context(|| shown.to_string())?.len();
        ensure!(size <= MAX_BYTES, "{shown}: {size} bytes are too many for a config");
        let text = std::fs::read_to_string(&path).with_context(|| shown.to_string())?;
        Self::parse(&text).with_context(|| shown.to_string())
    }

    /// As [`read`](Self::read), from the file's text.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = serde_json::from_str(text)?;
        let wrong = config.check();
        ensure!(wrong.is_empty(), wrong.join("\n"));
        Ok(config)
    }

    /// Values that parse but can not be computed with.
    pub fn check(&self) -> Vec<String> {
        let mut wrong = self.check_sizes();
        if wrong.is_empty() {
            wrong.extend(self.check_channels());
            wrong.extend(self.check_compression());
        }
        wrong
    }

    /// Lengths of lists, ranges of numbers.
    fn check_sizes(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.class_name != CLASS {
            wrong.push(format!("_class_name must be {CLASS}, found {}", self.class_name));
        }
        for (key, value) in [
            ("scaling_factor", self.scaling_factor),
            ("resnet_norm_eps", self.resnet_norm_eps),
        ] {
            if !value.is_finite() || value <= 0.0 {
                wrong.push(format!("{key} must be a number above 0, found {value}"));
            }
        }
        let kinds = &self.down_block_types;
        if kinds.iter().any(|kind| *kind != kinds[0]) {
            wrong.push("down_block_types must all be the same".into());
        }
        let (downs, ups) = (kinds.len(), self.decoder_block_out_channels.len());
        let widths = downs + usize::from(self.is_095());
        let flags = |flags: &[bool]| flags.iter().map(|flag| usize::from(*flag)).collect();
        for (key, values, count, [low, high]) in [
            ("in_channels", vec![self.in_channels], 1, CHANNELS),
            ("out_channels", vec![self.out_channels], 1, CHANNELS),
            ("latent_channels", vec![self.latent_channels], 1, CHANNELS),
            ("patch_size", vec![self.patch_size], 1, [1, 64]),
            ("patch_size_t", vec![self.patch_size_t], 1, [1, 1]),
            ("down_block_types", vec![0; downs], downs.clamp(1, MAX_BLOCKS), [0, 0]),
            ("downsample_type", vec![0; self.downsample_type.len()], downs, [0, 0]),
            ("block_out_channels", self.block_out_channels.clone(), widths, CHANNELS),
            ("layers_per_block", self.layers_per_block.clone(), downs + 1, LAYERS),
            (
                "spatio_temporal_scaling",
                flags(&self.spatio_temporal_scaling),
                downs,
                [0, 1],
            ),
            (
                "decoder_block_out_channels",
                self.decoder_block_out_channels.clone(),
                ups.clamp(1, MAX_BLOCKS),
                CHANNELS,
            ),
            (
                "decoder_layers_per_block",
                self.decoder_layers_per_block.clone(),
                ups + 1,
                LAYERS,
            ),
            (
                "decoder_spatio_temporal_scaling",
                flags(&self.decoder_spatio_temporal_scaling),
                ups,
                [0, 1],
            ),
            (
                "decoder_inject_noise",
                flags(&self.decoder_inject_noise),
                ups + 1,
                [0, 1],
            ),
            ("upsample_residual", flags(&self.upsample_residual), ups, [0, 1]),
            ("upsample_factor", self.upsample_factor.clone(), ups, [1, 8]),
        ] {
            if values.len() != count {
                wrong.push(format!("{key} must have {count} entries, found {}", values.len()));
            }
            if let Some(value) = values.iter().find(|value| !(low..=high).contains(*value)) {
                wrong.push(format!("{key} must lie between {low} and {high}, found {value}"));
            }
        }
        wrong
    }

    /// Whether each block can read what the one before it writes.
    fn check_channels(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (i, block) in self
            .down_blocks()
            .into_iter()
            .enumerate()
            .filter(|(_, block)| !block.conv_out)
        {
            let Down { inputs, outputs, .. } = block;
            let fits = match block.downsample {
                None | Some(DownsampleType::Conv) => inputs == outputs,
                Some(kind) => {
                    let pixels: usize = kind.stride().iter().product();
                    outputs.is_multiple_of(pixels) && (inputs * pixels).is_multiple_of(outputs)
                }
            };
            if !fits {
                let downsample = block.downsample;
                wrong.push(format!(
                    "block_out_channels: block {i} can not make {outputs} channels of {inputs} by downsample_type {downsample:?}"
                ));
            }
        }
        for (i, block) in self.up_blocks().into_iter().enumerate() {
            let conditioned = self.timestep_conditioning || block.inject_noise;
            let seen = if block.conv_in { block.outputs } else { block.inputs };
            let read = if block.upsample {
                block.outputs * block.factor
            } else {
                block.outputs
            };
            let repeats = !(block.residual && block.upsample) || seen.is_multiple_of(8) && 8 % block.factor == 0;
            if block.conv_in && (conditioned || block.factor > 1) || seen != read || !repeats {
                wrong.push(format!(
                    "decoder_block_out_channels: up block {i} does not fit the one before it: {block:?}"
                ));
            }
        }
        wrong
    }

    fn check_compression(&self) -> Vec<String> {
        let ups = self.up_blocks().iter().filter(|block| block.upsample).count();
        let mut wrong = Vec::new();
        for (key, ratio, found, decoder) in [
            (
                "spatial_compression_ratio",
                self.spatial_compression_ratio,
                self.spatial_compression(),
                self.patch_size << ups,
            ),
            (
                "temporal_compression_ratio",
                self.temporal_compression_ratio,
                self.temporal_compression(),
                1 << ups,
            ),
        ] {
            if found != decoder || ratio.is_some_and(|ratio| ratio != found) {
                let ratio = ratio.unwrap_or(found);
                wrong.push(format!(
                    "{key} is {ratio}, but the encoder makes one of {found}, and the decoder {decoder} of one"
                ));
            }
        }
        wrong
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
        self.patch_size * self.down_strides().map(|[_, rows, _]| rows).product::<usize>()
    }

    /// How many frames become one, after the first, which stays alone.
    pub fn temporal_compression(&self) -> usize {
        self.down_strides().map(|[frames, _, _]| frames).product()
    }

    fn down_strides(&self) -> impl Iterator<Item = [usize; 3]> {
        self.down_blocks()
            .into_iter()
            .filter_map(|block| block.downsample)
            .map(DownsampleType::stride)
    }
}
