//! `vae/config.json`.

use std::path::Path;

use anyhow::{Context, ensure};
use candle_core::{Result, Tensor};
use serde::Deserialize;

/// A config.json larger than this is none.
const MAX_BYTES: u64 = 1 << 20;

/// The keys of diffusers' `AutoencoderKLCogVideoX`, with its defaults. A key that is not here might change what is
/// computed, and is an error.
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
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    pub block_out_channels: Vec<usize>,
    pub latent_channels: usize,
    pub layers_per_block: usize,
    pub act_fn: String,
    pub norm_eps: f64,
    pub norm_num_groups: usize,
    pub temporal_compression_ratio: f64,
    /// The size that tiles are derived from.
    pub sample_height: usize,
    pub sample_width: usize,
    /// The transformer sees latents times this.
    pub scaling_factor: f64,
    pub shift_factor: Option<f64>,
    pub latents_mean: Option<Vec<f64>>,
    pub latents_std: Option<Vec<f64>>,
    /// Whether pipelines should keep the VAE in f32; they never ask.
    pub force_upcast: serde_json::Value,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    /// Image conditions are divided by `scaling_factor` instead.
    pub invert_scale_latents: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            class_name: CLASS.into(),
            diffusers_version: String::new(),
            name_or_path: String::new(),
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
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true.into(),
            use_quant_conv: false,
            use_post_quant_conv: false,
            invert_scale_latents: false,
        }
    }
}

const CLASS: &str = "AutoencoderKLCogVideoX";
const DOWN: &str = "CogVideoXDownBlock3D";
const UP: &str = "CogVideoXUpBlock3D";

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
        let mut wrong = self.check_blocks();
        wrong.extend(self.check_numbers());
        wrong
    }

    fn check_blocks(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut must = |holds: bool, message: String| {
            if !holds {
                wrong.push(message);
            }
        };
        must(
            self.class_name == CLASS,
            format!("_class_name must be {CLASS}, found {}", self.class_name),
        );
        let blocks = self.block_out_channels.len();
        for (key, types, known) in [
            ("down_block_types", &self.down_block_types, DOWN),
            ("up_block_types", &self.up_block_types, UP),
        ] {
            let right = types.len() == blocks && types.iter().all(|name| name == known);
            must(
                right,
                format!("{key} must be {known} for each of block_out_channels, found {types:?}"),
            );
        }
        must(
            (1..=16).contains(&blocks),
            format!("block_out_channels must have 1 to 16 entries, found {blocks}"),
        );
        for &channels in &self.block_out_channels {
            let grouped = self.norm_num_groups > 0 && channels > 0 && channels.is_multiple_of(self.norm_num_groups);
            must(
                grouped,
                format!(
                    "{channels} channels do not fall into norm_num_groups {}",
                    self.norm_num_groups
                ),
            );
        }
        wrong
    }

    fn check_numbers(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut must = |holds: bool, message: String| {
            if !holds {
                wrong.push(message);
            }
        };
        for (key, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
        ] {
            must(value > 0, format!("{key} must be at least 1, found 0"));
        }
        must(
            ["silu", "swish"].contains(&self.act_fn.as_str()),
            format!("act_fn must be silu, found {}", self.act_fn),
        );
        must(
            self.temporal_compression_ratio >= 1.0,
            format!(
                "temporal_compression_ratio must be at least 1, found {}",
                self.temporal_compression_ratio
            ),
        );
        must(
            self.scaling_factor.is_finite() && self.scaling_factor != 0.0,
            format!(
                "scaling_factor must be a number other than 0, found {}",
                self.scaling_factor
            ),
        );
        must(
            !(self.use_quant_conv || self.use_post_quant_conv) || self.out_channels == self.latent_channels,
            "use_quant_conv and use_post_quant_conv work only where out_channels is latent_channels".into(),
        );
        for (key, given) in [
            ("shift_factor", self.shift_factor.is_some()),
            ("latents_mean", self.latents_mean.is_some()),
            ("latents_std", self.latents_std.is_some()),
        ] {
            must(
                !given,
                format!("{key} must be null: CogVideoX scales latents by scaling_factor alone"),
            );
        }
        wrong
    }

    /// How many blocks halve (or double) the frames: the first so many.
    pub fn temporal_compress_level(&self) -> usize {
        self.temporal_compression_ratio.log2() as usize
    }

    /// How many pixels in a row become one.
    pub fn spatial_compression(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The transformer's view of latents.
    pub fn scale(&self, latents: &Tensor) -> Result<Tensor> {
        latents * self.scaling_factor
    }

    /// Back from the transformer's view.
    pub fn unscale(&self, latents: &Tensor) -> Result<Tensor> {
        latents * (1.0 / self.scaling_factor)
    }

    /// The transformer's view of an image condition's latents, which some checkpoints scale the other way.
    pub fn scale_image(&self, latents: &Tensor) -> Result<Tensor> {
        if self.invert_scale_latents {
            self.unscale(latents)
        } else {
            self.scale(latents)
        }
    }
}
