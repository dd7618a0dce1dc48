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

/// Reason for values that only Wan 2.2 changes.
const AS_BEFORE: &str = "as in Wan 2.1";

/// Keys of diffusers' `AutoencoderKLWan`. An unknown key might change the computation, and is an error; so are the keys
/// of Wan 2.2 with values other than Wan 2.1's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Channels at full size; `dim_mult` gives multiples of it for each size.
    pub base_dim: usize,
    /// Channels of the decoder at full size, if they differ from the encoder's.
    pub decoder_base_dim: Option<usize>,
    /// Channels of latents.
    pub z_dim: usize,
    /// Channels at each size, as multiples of `base_dim`.
    pub dim_mult: Vec<usize>,
    /// Residual layers at each size.
    pub num_res_blocks: usize,
    /// True for halvings of the size that halve the frames too.
    pub temperal_downsample: Vec<bool>,
    /// Mean of every channel; always given, so there is no default.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of every channel.
    pub latents_std: Vec<f64>,
    /// Frames per latent frame, if given.
    pub scale_factor_temporal: Option<usize>,
    /// Pixel rows, and columns, per latent one, if given.
    pub scale_factor_spatial: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            temperal_downsample: vec![false, true, true],
            latents_mean: Vec::new(),
            latents_std: Vec::new(),
            scale_factor_temporal: None,
            scale_factor_spatial: None,
        }
    }
}

impl Config {
    fn halvings_in_time(&self) -> usize {
        self.temperal_downsample.iter().filter(|in_time| **in_time).count()
    }

    /// Returns the pixel rows, and columns, per latent one.
    pub fn spatial_compression(&self) -> usize {
        1 << self.temperal_downsample.len()
    }

    /// Returns the frames per latent frame, except the first, which is separate.
    pub fn temporal_compression(&self) -> usize {
        1 << self.halvings_in_time()
    }

    /// Returns the channels of latents.
    pub fn latent_channels(&self) -> usize {
        self.z_dim
    }

    /// Normalises latents (B, C, f, h, w) for the transformer: (z - mean) / std, channel by channel.
    pub fn normalize(&self, latents: &Tensor) -> Result<Tensor> {
        let (mean, per_std) = self.tables(latents)?;
        latents.broadcast_sub(&mean)?.broadcast_mul(&per_std)
    }

    /// Inverts [`normalize`](Self::normalize).
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        let (mean, per_std) = self.tables(latents)?;
        latents.broadcast_div(&per_std)?.broadcast_add(&mean)
    }

    /// Returns mean and 1 / std in the type and on the device of `latents`, (1, C, 1, 1, 1).
    fn tables(&self, latents: &Tensor) -> Result<(Tensor, Tensor)> {
        let table = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            Tensor::from_vec(values, (1, self.z_dim, 1, 1, 1), latents.device())?.to_dtype(latents.dtype())
        };
        Ok((table(&self.latents_mean)?, table(&self.latents_std)?.recip()?))
    }
}

impl config::Config for Config {
    const CLASS: &str = "AutoencoderKLWan";
    const UNUSED: &[&str] = &["dropout"];
    const FIXED: &[(&str, &str, &str)] = &[
        ("attn_scales", "[]", AS_BEFORE),
        ("is_residual", "false", AS_BEFORE),
        ("in_channels", "3", AS_BEFORE),
        ("out_channels", "3", AS_BEFORE),
        ("patch_size", "null", AS_BEFORE),
    ];

    fn check(&self) -> Vec<String> {
        let (halvings, in_time) = (self.temperal_downsample.len(), self.halvings_in_time());
        let power = |halvings: usize| 2usize.saturating_pow(halvings as u32);
        let levels = (1..=MAX_LEVELS).contains(&self.dim_mult.len());
        let of_channels = |values: &[f64], least: f32| {
            values.len() == self.z_dim && values.iter().all(|value| value.is_finite() && *value as f32 >= least)
        };
        let (mean, std) = (&self.latents_mean, &self.latents_std);
        Rules::of(self)
            .between(&["base_dim"], 2..=MAX_WIDTH)
            .between(&["z_dim"], 1..=MAX_WIDTH)
            .must("dim_mult", levels, format!("1 to {MAX_LEVELS} entries"))
            .between(&["dim_mult", "num_res_blocks"], 1..=MAX_BLOCKS)
            // A piece of a clip has four frames.
            .must(
                "temperal_downsample",
                halvings + 1 == self.dim_mult.len() && in_time <= 2,
                "one entry shorter than dim_mult, with two times true at most",
            )
            .must("latents_mean", of_channels(mean, f32::MIN), "z_dim numbers")
            .must(
                "latents_std",
                of_channels(std, f32::MIN_POSITIVE),
                "z_dim numbers above 0",
            )
            .given("decoder_base_dim", self.base_dim, AS_BEFORE)
            .given("scale_factor_temporal", power(in_time), "by temperal_downsample")
            .given("scale_factor_spatial", power(halvings), "by temperal_downsample")
            .wrong()
    }
}
