//! `transformer/config.json` of an LTX-Video checkpoint.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The settings of `LTXVideoTransformer3DModel`, with its defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Of the latents.
    pub in_channels: usize,
    /// Of the prediction; None: those of the latents.
    pub out_channels: Option<usize>,
    /// Latents are packed by the pipeline, and only into patches of one.
    pub patch_size: usize,
    pub patch_size_t: usize,
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    /// Of what blocks attend to across: the text as it is projected, so the model's width.
    pub cross_attention_dim: usize,
    pub num_layers: usize,
    pub norm_elementwise_affine: bool,
    pub norm_eps: f64,
    /// Width of the text.
    pub caption_channels: usize,
    pub attention_bias: bool,
    pub attention_out_bias: bool,
    pub activation_fn: Activation,
    pub qk_norm: QkNorm,

    // Written by diffusers, and read by no computation.
    #[serde(rename = "_class_name")]
    class_name: Option<ClassName>,
    #[serde(rename = "_diffusers_version")]
    _diffusers_version: IgnoredAny,
    #[serde(rename = "_name_or_path")]
    _name_or_path: IgnoredAny,
}

/// Of the feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Activation {
    /// GELU by its tanh formula.
    #[serde(rename = "gelu-approximate")]
    GeluTanh,
}

/// Of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum QkNorm {
    #[serde(rename = "rms_norm_across_heads")]
    RmsAcrossHeads,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum ClassName {
    #[serde(rename = "LTXVideoTransformer3DModel")]
    LtxVideo,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 128,
            out_channels: Some(128),
            patch_size: 1,
            patch_size_t: 1,
            num_attention_heads: 32,
            attention_head_dim: 64,
            cross_attention_dim: 2048,
            num_layers: 28,
            norm_elementwise_affine: false,
            norm_eps: 1e-6,
            caption_channels: 4096,
            attention_bias: true,
            attention_out_bias: true,
            activation_fn: Activation::GeluTanh,
            qk_norm: QkNorm::RmsAcrossHeads,
            class_name: None,
            _diffusers_version: IgnoredAny,
            _name_or_path: IgnoredAny,
        }
    }
}

impl Config {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// No such file, another model's, an unknown key, sizes that do not go together: by file and key.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut json = serde_json::Deserializer::from_str(&text);
        let config: Self = serde_path_to_error::deserialize(&mut json).with_context(|| path.display().to_string())?;
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// Width of the tokens.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Of the prediction.
    pub fn predicted_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Refuses values that parse but make no sense.
    fn check(&self) -> anyhow::Result<()> {
        for (key, size) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.predicted_channels()),
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("num_layers", self.num_layers),
            ("caption_channels", self.caption_channels),
        ] {
            ensure!(
                (1..=1 << 24).contains(&size),
                "{key}: must be at least 1 and no giant, got {size}"
            );
        }
        for (key, size) in [("patch_size", self.patch_size), ("patch_size_t", self.patch_size_t)] {
            ensure!(size == 1, "{key}: only patches of 1 are supported, got {size}");
        }
        let dim = self.inner_dim();
        ensure!(
            dim >= 6 && dim.is_multiple_of(2),
            "attention_head_dim: {} heads of {} have no features for positions on three axes, which turn in pairs",
            self.num_attention_heads,
            self.attention_head_dim
        );
        ensure!(
            self.cross_attention_dim == dim,
            "cross_attention_dim: the text is projected to {dim} features (num_attention_heads x attention_head_dim), \
             got {}",
            self.cross_attention_dim
        );
        ensure!(
            self.norm_eps > 0.0 && self.norm_eps.is_finite(),
            "norm_eps: must be above 0, got {}",
            self.norm_eps
        );
        Ok(())
    }
}
