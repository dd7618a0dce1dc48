//! `vae/config.json`.

use std::path::Path;

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::nn::config::{self, Rules};

/// Upper limits, more than any checkpoint has.
const MAX_WIDTH: usize = 4096;
const MAX_LEVELS: usize = 8;
const MAX_BLOCKS: usize = 64;

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
    /// Sizes at which attention is added; must be empty.
    pub attn_scales: Vec<f64>,
    /// True for halvings of the size that halve the frames too.
    pub temperal_downsample: Vec<bool>,
    /// Dropout in training; not used here.
    pub dropout: f64,
    /// Mean of every channel; always given, so there is no default.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of every channel.
    pub latents_std: Vec<f64>,
    /// Shortcuts of Wan 2.2; must be off.
    pub is_residual: bool,
    /// Channels of the input frames.
    pub in_channels: usize,
    /// Channels of the decoded frames.
    pub out_channels: usize,
    /// Patches of Wan 2.2; must be none or 1.
    pub patch_size: Option<usize>,
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
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            dropout: 0.0,
            latents_mean: Vec::new(),
            latents_std: Vec::new(),
            is_residual: false,
            in_channels: 3,
            out_channels: 3,
            patch_size: None,
            scale_factor_temporal: None,
            scale_factor_spatial: None,
        }
    }
}

impl Config {
    /// Reads and checks `config.json` in `folder`.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        config::read(folder)
    }

    /// Same as [`read`](Self::read), from the file's text.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        config::parse(text)
    }

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

    fn check(&self) -> Vec<String> {
        let (halvings, in_time) = (self.temperal_downsample.len(), self.halvings_in_time());
        let power = |halvings: usize| 2usize.saturating_pow(halvings as u32);
        let or_null = |value: Option<usize>, right: usize| value.is_none_or(|value| value == right);
        let levels = (1..=MAX_LEVELS).contains(&self.dim_mult.len());
        let of_channels = |values: &[f64], least: f32| {
            values.len() == self.z_dim && values.iter().all(|value| value.is_finite() && *value as f32 >= least)
        };
        let (mean, std) = (&self.latents_mean, &self.latents_std);
        let (time, space) = (self.scale_factor_temporal, self.scale_factor_spatial);
        let as_before = "as in Wan 2.1";
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
            .only("attn_scales", Vec::<f64>::new(), as_before)
            .only("is_residual", false, as_before)
            .only("in_channels", 3, as_before)
            .only("out_channels", 3, as_before)
            .only("patch_size", (), as_before)
            .must(
                "decoder_base_dim",
                or_null(self.decoder_base_dim, self.base_dim),
                format!("null, {as_before}"),
            )
            .must(
                "scale_factor_temporal",
                or_null(time, power(in_time)),
                format!("{}, by temperal_downsample", power(in_time)),
            )
            .must(
                "scale_factor_spatial",
                or_null(space, power(halvings)),
                format!("{}, by temperal_downsample", power(halvings)),
            )
            .wrong()
    }
}
