//! `vae/config.json`.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::diffusers_config::{self as config, Rules};

/// Upper limits, more than any checkpoint has.
const MAX_WIDTH: usize = 4096;
const MAX_LEVELS: usize = 4;
const MAX_BLOCKS: usize = 64;
const MAX_SIDE: usize = 1 << 14;

/// Channels of clips.
pub const COLOURS: usize = 3;
/// Frames of a tile, and those that it shares with the next one.
pub const TILE_FRAMES: [usize; 2] = [24, 8];
/// Rows and columns that a tile shares with the next one.
pub const OVERLAP: [usize; 2] = [120, 80];

const DOWN: &str = "AllegroDownBlock3D";
const UP: &str = "AllegroUpBlock3D";

/// Reason for values that no checkpoint changes.
const PUBLISHED: &str = "as in Allegro";

/// Keys of diffusers' `AutoencoderKLAllegro`, with its defaults. An unknown key might change the computation, and is an error.
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
    /// Blocks of the encoder that halve the frames.
    pub temporal_downsample_blocks: Vec<bool>,
    /// Blocks of the decoder that double the frames.
    pub temporal_upsample_blocks: Vec<bool>,
    /// Residual layers of a block.
    pub layers_per_block: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Frames per latent frame.
    pub temporal_compression_ratio: usize,
    /// Rows, and columns, of a tile.
    pub sample_size: usize,
    /// Factor of latents in the transformer's input.
    pub scaling_factor: f64,
    /// True if it is computed in f32.
    pub force_upcast: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            latent_channels: 4,
            down_block_types: vec![DOWN.into(); 4],
            up_block_types: vec![UP.into(); 4],
            block_out_channels: vec![128, 256, 512, 512],
            temporal_downsample_blocks: vec![true, true, false, false],
            temporal_upsample_blocks: vec![false, true, true, false],
            layers_per_block: 2,
            norm_num_groups: 32,
            temporal_compression_ratio: 4,
            sample_size: 320,
            scaling_factor: 0.13,
            force_upcast: true,
        }
    }
}

impl Config {
    /// Returns the pixel rows, and columns, per latent one.
    pub fn spatial_compression(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Returns the frames per latent frame.
    pub fn temporal_compression(&self) -> usize {
        self.temporal_compression_ratio
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
    const CLASS: &str = "AutoencoderKLAllegro";
    const FIXED: &[(&str, &str, &str)] = &[
        ("in_channels", "3", PUBLISHED),
        ("out_channels", "3", PUBLISHED),
        ("act_fn", "\"silu\"", PUBLISHED),
    ];

    fn check(&self) -> Vec<String> {
        let (blocks, groups) = (self.block_out_channels.len(), self.norm_num_groups);
        let all = |types: &[String], known| types.len() == blocks && types.iter().all(|name| name == known);
        let each = |kind: &str| format!("{kind} for each of block_out_channels");
        let changes = |flags: &[bool]| flags.len() == blocks && self.temporal_compression_ratio == ratio(flags);
        let wanted = "true or false for each of block_out_channels, true for each 2 in temporal_compression_ratio";
        // Half of a tile at most is shared with the next one, and latents line up.
        let [time, least] = [TILE_FRAMES[1], 2 * OVERLAP[0]];
        let space = 1 << (blocks.clamp(1, MAX_LEVELS) - 1);
        let side = self.sample_size >= least && self.sample_size.is_multiple_of(space);
        Rules::of(self)
            .between(&["latent_channels", "block_out_channels"], 1..=MAX_WIDTH)
            .between(&["layers_per_block"], 1..=MAX_BLOCKS)
            .between(&["temporal_compression_ratio"], 1..=time)
            .between(&["sample_size"], 1..=MAX_SIDE)
            .must(
                "block_out_channels",
                (1..=MAX_LEVELS).contains(&blocks),
                format!("1 to {MAX_LEVELS} entries"),
            )
            .must("down_block_types", all(&self.down_block_types, DOWN), each(DOWN))
            .must("up_block_types", all(&self.up_block_types, UP), each(UP))
            .must(
                "temporal_downsample_blocks",
                changes(&self.temporal_downsample_blocks),
                wanted,
            )
            .must(
                "temporal_upsample_blocks",
                changes(&self.temporal_upsample_blocks),
                wanted,
            )
            .must(
                "sample_size",
                side,
                format!("at least {least}, in whole latents, for tiles that overlap by {OVERLAP:?}"),
            )
            .all(&self.block_out_channels, |channels| {
                let grouped = groups > 0 && channels.is_multiple_of(groups);
                (!grouped).then(|| format!("{channels} channels do not fall into norm_num_groups {groups}"))
            })
            .must("scaling_factor", self.scaling_factor != 0.0, "a number other than 0")
            .wrong()
    }
}

/// Returns the compression of blocks of which these change the frames by 2; more than there are is as wrong.
fn ratio(flags: &[bool]) -> usize {
    let count = flags.iter().filter(|flag| **flag).count();
    1 << count.min(MAX_BLOCKS - 1)
}
