//! `vae/config.json`.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::diffusers_config::{self as config, Rules, SIZE};

/// Upper limit for blocks, more than any checkpoint has.
const MAX_BLOCKS: usize = 16;

/// Keys of diffusers' `AutoencoderKLCogVideoX`, with its defaults. An unknown key might change the computation, and is
/// an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Channels of the input frames.
    pub in_channels: usize,
    /// Channels of the decoded frames.
    pub out_channels: usize,
    /// Kinds of the encoder's blocks.
    pub down_block_types: Vec<String>,
    /// Kinds of the decoder's blocks.
    pub up_block_types: Vec<String>,
    /// Channels of the blocks, from full size to smallest.
    pub block_out_channels: Vec<usize>,
    /// Channels of latents.
    pub latent_channels: usize,
    /// Residual layers of a block.
    pub layers_per_block: usize,
    /// Activation.
    pub act_fn: String,
    /// Epsilon of the group norms.
    pub norm_eps: f64,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Frames per latent frame.
    pub temporal_compression_ratio: f64,
    /// Rows of pixels that tiles are derived from.
    pub sample_height: usize,
    /// Columns of pixels that tiles are derived from.
    pub sample_width: usize,
    /// Factor of latents in the transformer's input.
    pub scaling_factor: f64,
    /// True for a convolution after the encoder.
    pub use_quant_conv: bool,
    /// True for a convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// True if image conditions are divided by `scaling_factor` instead.
    pub invert_scale_latents: bool,
}

const BY_FACTOR_ALONE: &str = "CogVideoX scales latents by scaling_factor alone";
const DOWN: &str = "CogVideoXDownBlock3D";
const UP: &str = "CogVideoXUpBlock3D";

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DOWN.into(); 4],
            up_block_types: vec![UP.into(); 4],
            block_out_channels: vec![128, 256, 256, 512],
            latent_channels: 16,
            layers_per_block: 3,
            act_fn: "silu".into(),
            norm_eps: 1e-6,
            norm_num_groups: 32,
            temporal_compression_ratio: 4.0,
            sample_height: 480,
            sample_width: 720,
            scaling_factor: 1.15258426,
            use_quant_conv: false,
            use_post_quant_conv: false,
            invert_scale_latents: false,
        }
    }
}

impl Config {
    /// Returns the number of blocks that halve (or double) the frames, which are the first ones.
    pub fn temporal_compress_level(&self) -> usize {
        self.temporal_compression_ratio.log2() as usize
    }

    /// Returns the pixel rows, and columns, per latent one.
    pub fn spatial_compression(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Scales latents for the transformer.
    pub fn scale(&self, latents: &Tensor) -> Result<Tensor> {
        latents * self.scaling_factor
    }

    /// Inverts [`scale`](Self::scale).
    pub fn unscale(&self, latents: &Tensor) -> Result<Tensor> {
        latents * (1.0 / self.scaling_factor)
    }

    /// Scales an image condition's latents for the transformer; some checkpoints divide instead.
    pub fn scale_image(&self, latents: &Tensor) -> Result<Tensor> {
        if self.invert_scale_latents {
            self.unscale(latents)
        } else {
            self.scale(latents)
        }
    }
}

impl config::Config for Config {
    const CLASS: &str = "AutoencoderKLCogVideoX";
    const UNUSED: &[&str] = &["force_upcast"];
    const FIXED: &[(&str, &str, &str)] = &[
        ("shift_factor", "null", BY_FACTOR_ALONE),
        ("latents_mean", "null", BY_FACTOR_ALONE),
        ("latents_std", "null", BY_FACTOR_ALONE),
    ];

    fn check(&self) -> Vec<String> {
        let (blocks, groups) = (self.block_out_channels.len(), self.norm_num_groups);
        let all = |types: &[String], known| types.len() == blocks && types.iter().all(|name| name == known);
        Rules::of(self)
            .between(
                &["in_channels", "out_channels", "latent_channels", "block_out_channels"],
                SIZE,
            )
            .holds((1..=MAX_BLOCKS).contains(&blocks), || {
                format!("block_out_channels must have 1 to {MAX_BLOCKS} entries, found {blocks}")
            })
            .must(
                "down_block_types",
                all(&self.down_block_types, DOWN),
                format!("{DOWN} for each of block_out_channels"),
            )
            .must(
                "up_block_types",
                all(&self.up_block_types, UP),
                format!("{UP} for each of block_out_channels"),
            )
            .all(&self.block_out_channels, |channels| {
                let grouped = groups > 0 && channels.is_multiple_of(groups);
                (!grouped).then(|| format!("{channels} channels do not fall into norm_num_groups {groups}"))
            })
            .must("act_fn", ["silu", "swish"].contains(&self.act_fn.as_str()), "silu")
            .must(
                "temporal_compression_ratio",
                self.temporal_compression_ratio >= 1.0,
                "at least 1",
            )
            .must("scaling_factor", self.scaling_factor != 0.0, "a number other than 0")
            .holds(
                !(self.use_quant_conv || self.use_post_quant_conv) || self.out_channels == self.latent_channels,
                || "use_quant_conv and use_post_quant_conv work only where out_channels is latent_channels".into(),
            )
            .wrong()
    }
}
