//! `transformer/config.json` of a Wan 2.1 checkpoint.

use serde::{Deserialize, Serialize};

use crate::diffusers_config::{self as config, Rules, SIZE};

/// Settings of `WanTransformer3DModel`, with its defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Latent frames, rows and columns of a patch.
    pub patch_size: [usize; 3],
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Features per head.
    pub attention_head_dim: usize,
    /// Channels of the latents; in image-to-video a mask and the image's latents follow.
    pub in_channels: usize,
    /// Channels of the prediction; None: `in_channels`.
    pub out_channels: Option<usize>,
    /// Width of the text.
    pub text_dim: usize,
    /// Width of a timestep's sines and cosines.
    pub freq_dim: usize,
    /// Inner width of the feed-forward layers.
    pub ffn_dim: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// True for a norm before cross-attention.
    pub cross_attn_norm: bool,
    /// Epsilon of the norms.
    pub eps: f64,
    /// Width of an encoded image, for models that attend to one.
    pub image_dim: Option<usize>,
    /// Width of the projected image, equal to the model's, for those models.
    pub added_kv_proj_dim: Option<usize>,
    /// Number of positions on each axis.
    pub rope_max_seq_len: usize,
    /// Image tokens with learned positions: those of a first and a last image.
    pub pos_embed_seq_len: Option<usize>,
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
        }
    }
}

impl Config {
    /// Returns the width of the tokens.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Returns the channels of the prediction.
    pub fn predicted_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }
}

impl config::Config for Config {
    const CLASS: &str = "WanTransformer3DModel";
    const FIXED: &[(&str, &str, &str)] = &[("qk_norm", "\"rms_norm_across_heads\"", "as in all checkpoints")];

    fn check(&self) -> Vec<String> {
        let dim = self.inner_dim();
        Rules::of(self)
            .between(
                &["patch_size", "in_channels", "out_channels", "text_dim", "image_dim"],
                SIZE,
            )
            .between(&["num_attention_heads", "attention_head_dim", "num_layers"], SIZE)
            .between(&["freq_dim", "ffn_dim", "rope_max_seq_len", "pos_embed_seq_len"], SIZE)
            .above_zero(&["eps"])
            .must(
                "attention_head_dim",
                self.attention_head_dim.is_multiple_of(2),
                "even: features are rotated in pairs",
            )
            .must(
                "freq_dim",
                self.freq_dim.is_multiple_of(2),
                "even: sines come with cosines",
            )
            .holds(self.image_dim.is_some() == self.added_kv_proj_dim.is_some(), || {
                "image_dim and added_kv_proj_dim: a model that attends to an image has both".into()
            })
            .must(
                "pos_embed_seq_len",
                self.pos_embed_seq_len.is_none() || self.image_dim.is_some(),
                "null where image_dim is",
            )
            .must(
                "added_kv_proj_dim",
                self.added_kv_proj_dim.is_none_or(|added| added == dim),
                format!("num_attention_heads x attention_head_dim, {dim}: the image is projected to that"),
            )
            .wrong()
    }
}
