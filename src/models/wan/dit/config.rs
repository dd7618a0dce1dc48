//! `transformer/config.json` of a Wan 2.1 checkpoint.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The settings of `WanTransformer3DModel`, with its defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Latent frames, rows and columns of a patch.
    pub patch_size: [usize; 3],
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    /// Of the latents, and in image to video of a mask and the image's latents behind them.
    pub in_channels: usize,
    /// Of the prediction; None: `in_channels`.
    pub out_channels: Option<usize>,
    /// Width of the text.
    pub text_dim: usize,
    /// Sines and cosines of a timestep.
    pub freq_dim: usize,
    /// Width of the feed-forward layers, inside.
    pub ffn_dim: usize,
    pub num_layers: usize,
    /// Whether there is a norm before cross-attention.
    pub cross_attn_norm: bool,
    pub eps: f64,
    /// Width of an encoded image, for models that attend to one.
    pub image_dim: Option<usize>,
    /// The model's width, for those models.
    pub added_kv_proj_dim: Option<usize>,
    /// Places on each axis.
    pub rope_max_seq_len: usize,
    /// Tokens of the encoded images that have learned positions: those of a first and a last image.
    pub pos_embed_seq_len: Option<usize>,
    pub qk_norm: QkNorm,

    // Written by diffusers, and read by no computation.
    #[serde(rename = "_class_name")]
    class_name: Option<ClassName>,
    #[serde(rename = "_diffusers_version")]
    _diffusers_version: IgnoredAny,
    #[serde(rename = "_name_or_path")]
    _name_or_path: IgnoredAny,
}

/// Of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum QkNorm {
    #[serde(rename = "rms_norm_across_heads")]
    RmsAcrossHeads,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum ClassName {
    #[serde(rename = "WanTransformer3DModel")]
    Wan,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_size: [1, 2, 2],
            num_attention_heads: 40,
            attention_head_dim: 128,
            in_channels: 16,
            out_channels: Some(16),
            text_dim: 4096,
            freq_dim: 256,
            ffn_dim: 13824,
            num_layers: 40,
            cross_attn_norm: true,
            eps: 1e-6,
            image_dim: None,
            added_kv_proj_dim: None,
            rope_max_seq_len: 1024,
            pos_embed_seq_len: None,
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
        let [depth, height, width] = self.patch_size;
        for (key, size) in [
            ("patch_size", depth),
            ("patch_size", height),
            ("patch_size", width),
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("in_channels", self.in_channels),
            ("out_channels", self.predicted_channels()),
            ("text_dim", self.text_dim),
            ("freq_dim", self.freq_dim),
            ("ffn_dim", self.ffn_dim),
            ("num_layers", self.num_layers),
            ("image_dim", self.image_dim.unwrap_or(1)),
            ("rope_max_seq_len", self.rope_max_seq_len),
            ("pos_embed_seq_len", self.pos_embed_seq_len.unwrap_or(1)),
        ] {
            ensure!(
                (1..=1 << 24).contains(&size),
                "{key}: must be at least 1 and no giant, got {size}"
            );
        }
        ensure!(
            self.attention_head_dim.is_multiple_of(2),
            "attention_head_dim: features turn in pairs, got {}",
            self.attention_head_dim
        );
        ensure!(
            self.freq_dim.is_multiple_of(2),
            "freq_dim: sines come with cosines, got {}",
            self.freq_dim
        );
        ensure!(
            self.eps > 0.0 && self.eps.is_finite(),
            "eps: must be above 0, got {}",
            self.eps
        );
        self.check_image()
    }

    fn check_image(&self) -> anyhow::Result<()> {
        let dim = self.inner_dim();
        match (self.image_dim, self.added_kv_proj_dim) {
            (None, None) => ensure!(
                self.pos_embed_seq_len.is_none(),
                "pos_embed_seq_len: needs image_dim as well"
            ),
            (Some(_), Some(added)) => ensure!(
                added == dim,
                "added_kv_proj_dim: the image is projected to {dim} features (num_attention_heads x \
                 attention_head_dim), got {added}"
            ),
            _ => anyhow::bail!("image_dim and added_kv_proj_dim: a model that attends to an image has both"),
        }
        Ok(())
    }
}
