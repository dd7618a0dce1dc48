//! `vae/config.json`.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::diffusers_config::{self as config, Rules};
use crate::models::latent_norm::LatentNorm;

/// Upper limits, more than any checkpoint has.
const MAX_WIDTH: usize = 4096;
const MAX_LEVELS: usize = 8;
const MAX_BLOCKS: usize = 64;
const MAX_EXPANSION: usize = 8;

/// Channels of clips.
pub const COLOURS: usize = 3;
/// Groups of the group norms, and channels of a head; diffusers has no keys for them.
pub const GROUPS: usize = 32;
pub const HEAD_WIDTH: usize = 32;

/// Reason for values that no checkpoint changes.
const PUBLISHED: &str = "as in Mochi 1";

/// Keys of diffusers' `AutoencoderKLMochi`, with its defaults. An unknown key might change the computation, and is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Channels of the encoder's blocks, from full size to smallest.
    pub encoder_block_out_channels: Vec<usize>,
    /// Channels of the decoder's blocks, from full size to smallest.
    pub decoder_block_out_channels: Vec<usize>,
    /// Channels of latents.
    pub latent_channels: usize,
    /// Resnets of the block at full size, of those that change the size, and of the one at the smallest size.
    pub layers_per_block: Vec<usize>,
    /// Frames that become one, for each change of the size.
    pub temporal_expansions: Vec<usize>,
    /// Rows, and columns, that become one, for each change of the size.
    pub spatial_expansions: Vec<usize>,
    /// True for blocks of the encoder with attention.
    pub add_attention_block: Vec<bool>,
    /// Mean of every channel of latents.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of every channel.
    pub latents_std: Vec<f64>,
    /// Factor of latents in the transformer's input, besides the deviation.
    pub scaling_factor: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            encoder_block_out_channels: vec![64, 128, 256, 384],
            decoder_block_out_channels: vec![128, 256, 512, 768],
            latent_channels: 12,
            layers_per_block: vec![3, 3, 4, 6, 3],
            temporal_expansions: vec![1, 2, 3],
            spatial_expansions: vec![2; 3],
            add_attention_block: vec![false, true, true, true, true],
            latents_mean: vec![
                -0.06730895953510081,
                -0.038011381506090416,
                -0.07477820912866141,
                -0.05565264470995561,
                0.012767231469026969,
                -0.04703542746246419,
                0.043896967884726704,
                -0.09346305707025976,
                -0.09918314763016893,
                -0.008729793427399178,
                -0.011931556316503654,
                -0.0321993391887285,
            ],
            latents_std: vec![
                0.9263795028493863,
                0.9248894543193766,
                0.9393059390890617,
                0.959253732819592,
                0.8244560132752793,
                0.917259975397747,
                0.9294154431013696,
                1.3720942357788521,
                0.881393668867029,
                0.9168315692124348,
                0.9185249279345552,
                0.9274757570805041,
            ],
            scaling_factor: 1.0,
        }
    }
}

impl Config {
    /// Returns the frames, rows and columns that become one at change `i` of the size, counted from full size on.
    pub fn factors(&self, i: usize) -> [usize; 3] {
        let side = self.spatial_expansions[i];
        [self.temporal_expansions[i], side, side]
    }

    /// Returns the pixel rows, and columns, per latent one.
    pub fn spatial_compression(&self) -> usize {
        self.spatial_expansions.iter().product()
    }

    /// Returns the frames per latent frame, except the first, which is separate.
    pub fn temporal_compression(&self) -> usize {
        self.temporal_expansions.iter().product()
    }

    /// Returns the channels of latents.
    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// Normalises latents (B, L, f, h, w) for the transformer: (z - mean) * scaling_factor / std, channel by channel.
    pub fn normalize(&self, latents: &Tensor) -> Result<Tensor> {
        self.latent_norm()?.normalize(latents)
    }

    /// Inverts [`normalize`](Self::normalize).
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        self.latent_norm()?.denormalize(latents)
    }

    fn latent_norm(&self) -> Result<LatentNorm> {
        LatentNorm::of([&self.latents_mean, &self.latents_std], self.scaling_factor)
    }
}

impl config::Config for Config {
    const CLASS: &str = "AutoencoderKLMochi";
    const FIXED: &[(&str, &str, &str)] = &[
        (
            "in_channels",
            "15",
            "three colours and four features of each, as in Mochi 1",
        ),
        ("out_channels", "3", PUBLISHED),
        ("act_fn", "\"silu\"", PUBLISHED),
    ];

    fn check(&self) -> Vec<String> {
        let levels = self.encoder_block_out_channels.len();
        let of_channels = |values: &[f64], least: f32| {
            values.len() == self.latent_channels
                && values.iter().all(|value| value.is_finite() && *value as f32 >= least)
        };
        let (mean, std) = (&self.latents_mean, &self.latents_std);
        let widths = [&self.encoder_block_out_channels[..], &self.decoder_block_out_channels].concat();
        Rules::of(self)
            .between(
                &["encoder_block_out_channels", "decoder_block_out_channels"],
                1..=MAX_WIDTH,
            )
            .all(&widths, |channels| {
                let grouped = channels.is_multiple_of(GROUPS);
                (!grouped).then(|| format!("{channels} channels do not fall into {GROUPS} groups"))
            })
            .between(&["latent_channels"], 1..=MAX_WIDTH)
            .between(&["layers_per_block"], 0..=MAX_BLOCKS)
            .between(&["temporal_expansions"], 1..=MAX_EXPANSION)
            .must(
                "spatial_expansions",
                self.spatial_expansions.iter().all(|by| *by == 2),
                "2 each, as in Mochi 1",
            )
            .must(
                "encoder_block_out_channels",
                (1..=MAX_LEVELS).contains(&levels),
                format!("1 to {MAX_LEVELS} entries"),
            )
            .length(&["decoder_block_out_channels"], levels)
            .length(&["layers_per_block", "add_attention_block"], levels + 1)
            .length(&["temporal_expansions", "spatial_expansions"], levels.saturating_sub(1))
            .must("latents_mean", of_channels(mean, f32::MIN), "latent_channels numbers")
            .must(
                "latents_std",
                of_channels(std, f32::MIN_POSITIVE),
                "latent_channels numbers above 0",
            )
            .above_zero(&["scaling_factor"])
            .wrong()
    }
}
