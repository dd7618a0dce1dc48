//! `transformer/config.json` of an LTX-Video checkpoint.

use serde::{Deserialize, Serialize};

use crate::diffusers_config::{self as config, Rules, SIZE};

/// Settings of `LTXVideoTransformer3DModel`, with its defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction; None: those of the latents.
    pub out_channels: Option<usize>,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Features per head.
    pub attention_head_dim: usize,
    /// Width of the cross-attention's context: the projected text, so the model's width.
    pub cross_attention_dim: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Weights on norms.
    pub norm_elementwise_affine: bool,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Width of the text.
    pub caption_channels: usize,
    /// Biases on the projections of queries, keys and values.
    pub attention_bias: bool,
    /// Bias of the projection after attention.
    pub attention_out_bias: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 128,
            out_channels: Some(128),
            num_attention_heads: 32,
            attention_head_dim: 64,
            cross_attention_dim: 2048,
            num_layers: 28,
            norm_elementwise_affine: false,
            norm_eps: 1e-6,
            caption_channels: 4096,
            attention_bias: true,
            attention_out_bias: true,
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
    const CLASS: &str = "LTXVideoTransformer3DModel";
    const FIXED: &[(&str, &str, &str)] = &[
        ("patch_size", "1", "as the pipeline packs latents"),
        ("patch_size_t", "1", "as the pipeline packs latents"),
        ("activation_fn", "\"gelu-approximate\"", "as in all checkpoints"),
        ("qk_norm", "\"rms_norm_across_heads\"", "as in all checkpoints"),
    ];

    fn check(&self) -> Vec<String> {
        let dim = self.inner_dim();
        Rules::of(self)
            .between(&["in_channels", "out_channels", "caption_channels", "num_layers"], SIZE)
            .between(&["num_attention_heads", "attention_head_dim"], SIZE)
            .above_zero(&["norm_eps"])
            .must(
                "attention_head_dim",
                dim >= 6 && dim.is_multiple_of(2),
                "so large that all heads have features for positions on three axes, which turn in pairs",
            )
            .must(
                "cross_attention_dim",
                self.cross_attention_dim == dim,
                format!("num_attention_heads x attention_head_dim, {dim}: the text is projected to that"),
            )
            .wrong()
    }
}
