//! `transformer/config.json` of a Mochi checkpoint.

use serde::{Deserialize, Serialize};

use crate::diffusers_config::{self as config, Rules, SIZE};

/// Heads of the attention that pools the text, whatever the blocks have.
pub const POOL_HEADS: usize = 8;

/// Settings of `MochiTransformer3DModel`, with its defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Latent rows and columns of a patch.
    pub patch_size: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Features per head.
    pub attention_head_dim: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Width of the text's stream.
    pub pooled_projection_dim: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction; None: those of the latents.
    pub out_channels: Option<usize>,
    /// Width of the text.
    pub text_embed_dim: usize,
    /// Sines and cosines of a timestep.
    pub time_embed_dim: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_size: 2,
            num_attention_heads: 24,
            attention_head_dim: 128,
            num_layers: 48,
            pooled_projection_dim: 1536,
            in_channels: 12,
            out_channels: None,
            text_embed_dim: 4096,
            time_embed_dim: 256,
        }
    }
}

impl Config {
    /// Returns the width of the clip's tokens.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Returns the channels of the prediction.
    pub fn predicted_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Returns the latent frames, rows and columns of a patch.
    pub fn patch(&self) -> [usize; 3] {
        [1, self.patch_size, self.patch_size]
    }
}

/// Returns the inner width of a feed-forward layer of tokens of this width.
pub fn feed_forward_dim(width: usize) -> usize {
    4 * width * 2 / 3
}

impl config::Config for Config {
    const CLASS: &str = "MochiTransformer3DModel";
    const FIXED: &[(&str, &str, &str)] = &[
        ("qk_norm", "\"rms_norm\"", "as in all checkpoints"),
        ("activation_fn", "\"swiglu\"", "as in all checkpoints"),
        ("max_sequence_length", "256", "as in the pipeline"),
    ];

    fn check(&self) -> Vec<String> {
        Rules::of(self)
            .between(
                &["patch_size", "num_attention_heads", "attention_head_dim", "num_layers"],
                SIZE,
            )
            .between(&["pooled_projection_dim", "in_channels", "out_channels"], SIZE)
            .between(&["text_embed_dim", "time_embed_dim"], SIZE)
            .must(
                "attention_head_dim",
                self.attention_head_dim.is_multiple_of(2),
                "an even number: features are rotated in pairs",
            )
            .must(
                "text_embed_dim",
                self.text_embed_dim.is_multiple_of(POOL_HEADS),
                format!("a multiple of {POOL_HEADS}, the heads that pool the text"),
            )
            .wrong()
    }
}
