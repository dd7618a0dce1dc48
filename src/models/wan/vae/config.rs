//! `vae/config.json`.

use std::path::Path;

use anyhow::{Context, ensure};
use candle_core::{Result, Tensor};
use serde::Deserialize;

/// A config.json larger than this is none.
const MAX_BYTES: u64 = 1 << 20;

const CLASS: &str = "AutoencoderKLWan";

/// The keys of diffusers' `AutoencoderKLWan`, with its defaults. A key that is not here might change what is computed,
/// and is an error; so are those that came with Wan 2.2, where they say anything else than Wan 2.1 does.
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
    /// Channels at full size; `dim_mult` times as many at each halving.
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
    /// Of every channel: the transformer sees (z - mean) / std.
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
            class_name: CLASS.into(),
            diffusers_version: String::new(),
            name_or_path: String::new(),
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            dropout: 0.0,
            latents_mean: vec![
                -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
                -0.1922, -0.9497, 0.2503, -0.2921,
            ],
            latents_std: vec![
                2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
                1.1253, 2.8251, 1.9160,
            ],
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
        let wrong: Vec<String> = config
            .check()
            .into_iter()
            .map(|(key, message)| format!("{key} {message}"))
            .collect();
        ensure!(wrong.is_empty(), wrong.join("\n"));
        Ok(config)
    }

    /// Values that parse but can not be computed with, by key.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut wrong = self.check_sizes();
        wrong.extend(self.check_latents());
        if wrong.is_empty() {
            wrong.extend(self.check_version());
        }
        wrong
    }

    fn check_sizes(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        if self.class_name != CLASS {
            wrong.push((
                "_class_name".into(),
                format!("must be {CLASS}, found {}", self.class_name),
            ));
        }
        let mut within = |key: &str, range: std::ops::RangeInclusive<usize>, found: usize| {
            if !range.contains(&found) {
                let (first, last) = range.into_inner();
                wrong.push((key.into(), format!("must be {first} to {last}, found {found}")));
            }
        };
        within("base_dim", 2..=4096, self.base_dim);
        within("z_dim", 1..=4096, self.z_dim);
        within("num_res_blocks", 1..=64, self.num_res_blocks);
        within("dim_mult's length", 1..=8, self.dim_mult.len());
        for (i, &multiple) in self.dim_mult.iter().enumerate() {
            within(&format!("dim_mult[{i}]"), 1..=64, multiple);
        }
        let (halvings, choices) = (self.dim_mult.len().saturating_sub(1), self.temperal_downsample.len());
        within("temperal_downsample's length", halvings..=halvings, choices);
        // Frames come four at a time.
        let in_time = self.temperal_downsample.iter().filter(|in_time| **in_time).count();
        within("temperal_downsample's number of trues", 0..=2, in_time);
        wrong
    }

    fn check_latents(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        for (key, values, least) in [
            ("latents_mean", &self.latents_mean, f64::MIN),
            ("latents_std", &self.latents_std, f64::from(f32::MIN_POSITIVE)),
        ] {
            if values.len() != self.z_dim {
                let (found, wanted) = (values.len(), self.z_dim);
                wrong.push((key.into(), format!("must have z_dim {wanted} entries, found {found}")));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite() || **value < least) {
                wrong.push((key.into(), format!("has an entry {value} that latents can not have")));
            }
        }
        wrong
    }

    /// What another version of Wan says differently.
    fn check_version(&self) -> Vec<(String, String)> {
        let (time, space) = (self.temporal_compression(), self.spatial_compression());
        let or_null = |value: Option<usize>, right: usize| value.is_none_or(|value| value == right);
        [
            ("is_residual", !self.is_residual, "false".into()),
            ("patch_size", self.patch_size.is_none(), "null".into()),
            ("attn_scales", self.attn_scales.is_empty(), "[]".into()),
            ("in_channels", self.in_channels == 3, "3".into()),
            ("out_channels", self.out_channels == 3, "3".into()),
            (
                "decoder_base_dim",
                or_null(self.decoder_base_dim, self.base_dim),
                format!("null or base_dim {}", self.base_dim),
            ),
            (
                "scale_factor_temporal",
                or_null(self.scale_factor_temporal, time),
                format!("{time}, by temperal_downsample"),
            ),
            (
                "scale_factor_spatial",
                or_null(self.scale_factor_spatial, space),
                format!("{space}, by dim_mult"),
            ),
        ]
        .into_iter()
        .filter(|(_, right, _)| !right)
        .map(|(key, _, must): (&str, _, String)| (key.into(), format!("must be {must}, as in Wan 2.1")))
        .collect()
    }

    /// How many pixels in a row become one.
    pub fn spatial_compression(&self) -> usize {
        1 << self.temperal_downsample.len()
    }

    /// How many frames become one, but for the first, which stays alone.
    pub fn temporal_compression(&self) -> usize {
        1 << self.temperal_downsample.iter().filter(|in_time| **in_time).count()
    }

    /// Channels of latents.
    pub fn latent_channels(&self) -> usize {
        self.z_dim
    }

    /// The transformer's view of latents (B, C, f, h, w): (z - mean) / std, channel by channel.
    pub fn normalize(&self, latents: &Tensor) -> Result<Tensor> {
        latents
            .broadcast_sub(&table(&self.latents_mean, 1, latents)?)?
            .broadcast_mul(&table(&self.latents_std, -1, latents)?)
    }

    /// Back from the transformer's view.
    pub fn denormalize(&self, latents: &Tensor) -> Result<Tensor> {
        latents
            .broadcast_div(&table(&self.latents_std, -1, latents)?)?
            .broadcast_add(&table(&self.latents_mean, 1, latents)?)
    }
}

/// `values` or their reciprocals, as f32 has them, (1, C, 1, 1, 1) beside `latents`.
fn table(values: &[f64], power: i32, latents: &Tensor) -> Result<Tensor> {
    let values: Vec<f32> = values.iter().map(|value| (*value as f32).powi(power)).collect();
    let count = values.len();
    Tensor::from_vec(values, (1, count, 1, 1, 1), latents.device())?.to_dtype(latents.dtype())
}
