//! `vae/config.json`.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::diffusers_config::{self as config, Rules};

/// Upper limits, more than any checkpoint has.
const MAX_WIDTH: usize = 4096;
const MAX_LEVELS: usize = 8;
const MAX_BLOCKS: usize = 64;

/// Channels of clips.
pub const COLOURS: usize = 3;
/// Frames per latent frame, except the first, which is separate.
pub const TEMPORAL_COMPRESSION: usize = 4;
/// Blocks that halve the frames: the last of those that halve the size, and so on the way up.
const IN_TIME: usize = 2;

const DOWN: &str = "HunyuanVideoDownBlock3D";
const UP: &str = "HunyuanVideoUpBlock3D";

/// Reason for values that no checkpoint changes.
const PUBLISHED: &str = "as in HunyuanVideo";

/// Keys of diffusers' `AutoencoderKLHunyuanVideo`, with its defaults. An unknown key might change the computation, and is an
/// error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Channels of latents.
    pub latent_channels: usize,
    /// Kinds of the encoder's blocks.
    pub down_block_types: Vec<String>,
    /// Kinds of the decoder's blocks.
    pub up_block_types: Vec<String>,
    /// Channels of the blocks, from full size to smallest.
    pub block_out_channels: Vec<usize>,
    /// Residual layers of a block.
    pub layers_per_block: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Factor of latents in the transformer's input.
    pub scaling_factor: f64,
    /// Pixel rows, and columns, per latent one.
    pub spatial_compression_ratio: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            latent_channels: 16,
            down_block_types: vec![DOWN.into(); 4],
            up_block_types: vec![UP.into(); 4],
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.476986,
            spatial_compression_ratio: 8,
        }
    }
}

impl Config {
    /// Says whether block `i`, counted in the order of computation, changes the frames with the size; None if neither.
    pub fn resamples_time(&self, i: usize) -> Option<bool> {
        let last = self.block_out_channels.len() - 1;
        (i < last).then(|| i + IN_TIME >= last)
    }

    /// Returns the pixel rows, and columns, per latent one.
    pub fn spatial_compression(&self) -> usize {
        self.spatial_compression_ratio
    }

    /// Returns the frames per latent frame, except the first, which is separate.
    pub fn temporal_compression(&self) -> usize {
        TEMPORAL_COMPRESSION
    }

    /// Returns the channels of latents.
    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// Scales latents for the transformer.
    pub fn normalize(&self, latents: &Tensor) -> Result<Tensor> {
        latents * self.scaling_factor
    }

    /// Inverts [`normalize`](Self::normalize).
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        latents * (1.0 / self.scaling_factor)
    }
}

impl config::Config for Config {
    const CLASS: &str = "AutoencoderKLHunyuanVideo";
    const FIXED: &[(&str, &str, &str)] = &[
        ("in_channels", "3", PUBLISHED),
        ("out_channels", "3", PUBLISHED),
        ("act_fn", "\"silu\"", PUBLISHED),
        ("temporal_compression_ratio", "4", PUBLISHED),
        ("mid_block_add_attention", "true", PUBLISHED),
    ];

    fn check(&self) -> Vec<String> {
        let (blocks, groups) = (self.block_out_channels.len(), self.norm_num_groups);
        let all = |types: &[String], known| types.len() == blocks && types.iter().all(|name| name == known);
        let each = |kind: &str| format!("{kind} for each of block_out_channels");
        let halvings = u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX);
        let levels = format!("{} to {MAX_LEVELS} entries", IN_TIME + 1);
        Rules::of(self)
            .between(&["latent_channels", "block_out_channels"], 1..=MAX_WIDTH)
            .between(&["layers_per_block"], 1..=MAX_BLOCKS)
            .must(
                "block_out_channels",
                (IN_TIME + 1..=MAX_LEVELS).contains(&blocks),
                levels,
            )
            .must("down_block_types", all(&self.down_block_types, DOWN), each(DOWN))
            .must("up_block_types", all(&self.up_block_types, UP), each(UP))
            .must(
                "spatial_compression_ratio",
                2usize.checked_pow(halvings) == Some(self.spatial_compression_ratio),
                "2 for each of block_out_channels but one, multiplied",
            )
            .all(&self.block_out_channels, |channels| {
                let grouped = groups > 0 && channels.is_multiple_of(groups);
                (!grouped).then(|| format!("{channels} channels do not fall into norm_num_groups {groups}"))
            })
            .must("scaling_factor", self.scaling_factor != 0.0, "a number other than 0")
            .wrong()
    }
}
