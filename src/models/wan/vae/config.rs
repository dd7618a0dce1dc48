//! `vae/config.json`.

use std::path::Path;

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::nn::config::{self, Rules};

/// The keys of diffusers' `AutoencoderKLWan`. A key that is not here might change what is computed, and is an error; so
/// are those that came with Wan 2.2, where they say anything else than Wan 2.1 does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Channels at full size; `dim_mult` times as many from one halving to the next.
    pub base_dim: usize,
    pub decoder_base_dim: Option<usize>,
    /// Channels of latents.
    pub z_dim: usize,
    pub dim_mult: Vec<usize>,
    pub num_res_blocks: usize,
    pub attn_scales: Vec<f64>,
    /// Which halvings of the size halve the frames too.
    pub temperal_downsample: Vec<bool>,
    /// Only for training.
    pub dropout: f64,
    /// Of every channel; always written out, so there is no default.
    pub latents_mean: Vec<f64>,
    pub latents_std: Vec<f64>,
    pub is_residual: bool,
    pub in_channels: usize,
    pub out_channels: usize,
    pub patch_size: Option<usize>,
    pub scale_factor_temporal: Option<usize>,
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

    /// As [`read`](Self::read), from the file's text.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        config::parse(text)
    }

    fn halvings_in_time(&self) -> usize {
        self.temperal_downsample.iter().filter(|in_time| **in_time).count()
    }

    /// How many pixels in a row become one.
    pub fn spatial_compression(&self) -> usize {
        1 << self.temperal_downsample.len()
    }

    /// How many frames become one; the first stays alone.
    pub fn temporal_compression(&self) -> usize {
        1 << self.halvings_in_time()
    }

    /// Channels of latents.
    pub fn latent_channels(&self) -> usize {
        self.z_dim
    }

    /// The transformer's view of latents (B, C, f, h, w): (z - mean) / std, channel by channel.
    pub fn normalize(&self, latents: &Tensor) -> Result<Tensor> {
        let (mean, per_std) = self.tables(latents)?;
        latents.broadcast_sub(&mean)?.broadcast_mul(&per_std)
    }

    /// Back from the transformer's view.
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        let (mean, per_std) = self.tables(latents)?;
        latents.broadcast_div(&per_std)?.broadcast_add(&mean)
    }

    /// mean and 1 / std beside `latents`, (1, C, 1, 1, 1).
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
        let power = |halvings: usize| 2usize.saturating_pow(halvings.min(64) as u32);
        let or_null = |value: Option<usize>, right: usize| value.is_none_or(|value| value == right);
        let widths = (1..=8).contains(&self.dim_mult.len()) && self.dim_mult.iter().all(|m| (1..=64).contains(m));
        let of_channels = |values: &[f64], least: f32| {
            values.len() == self.z_dim && values.iter().all(|value| value.is_finite() && *value as f32 >= least)
        };
        let (mean, std) = (&self.latents_mean, &self.latents_std);
        let (time, space) = (self.scale_factor_temporal, self.scale_factor_spatial);
        let as_before = "as in Wan 2.1";
        Rules::of(self)
            .must("base_dim", (2..=4096).contains(&self.base_dim), "2 to 4096")
            .must("z_dim", (1..=4096).contains(&self.z_dim), "1 to 4096")
            .must("dim_mult", widths, "1 to 8 numbers from 1 to 64")
            .must("num_res_blocks", (1..=64).contains(&self.num_res_blocks), "1 to 64")
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
