//! `transformer/config.json` of an Allegro checkpoint.

use serde::{Deserialize, Serialize};

use crate::diffusers_config::{self as config, Rules, SIZE};

/// Axes of the positions: time, rows, columns.
pub const AXES: usize = 3;

/// Settings of `AllegroTransformer3DModel`, with its defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Rows, and columns, of latents that become one token.
    pub patch_size: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Features per head.
    pub attention_head_dim: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Width of the cross-attention's context: the projected text, so the model's width.
    pub cross_attention_dim: usize,
    /// Biases on the projections of queries, keys and values.
    pub attention_bias: bool,
    /// Epsilon of the norms in blocks.
    pub norm_eps: f64,
    /// Width of the text.
    pub caption_channels: usize,
    /// Rows of tokens that are one position apart.
    pub interpolation_scale_h: f64,
    /// Columns of tokens that are one position apart.
    pub interpolation_scale_w: f64,
    /// Latent frames that are one position apart.
    pub interpolation_scale_t: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_size: 2,
            num_attention_heads: 24,
            attention_head_dim: 96,
            in_channels: 4,
            out_channels: 4,
            num_layers: 32,
            cross_attention_dim: 2304,
            attention_bias: true,
            norm_eps: 1e-6,
            caption_channels: 4096,
            interpolation_scale_h: 2.0,
            interpolation_scale_w: 2.0,
            interpolation_scale_t: 2.2,
        }
    }
}

impl Config {
    /// Returns the width of the tokens.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Returns the latent frames, rows and columns per token.
    pub fn patch(&self) -> [usize; 3] {
        [1, self.patch_size, self.patch_size]
    }

    /// Returns the distance between positions in time, rows and columns.
    pub fn interpolation_scales(&self) -> [f64; AXES] {
        [
            self.interpolation_scale_t,
            self.interpolation_scale_h,
            self.interpolation_scale_w,
        ]
    }
}

impl config::Config for Config {
    const CLASS: &str = "AllegroTransformer3DModel";
    /// The pipeline's default size.
    const UNUSED: &[&str] = &["sample_height", "sample_width", "sample_frames"];
    const FIXED: &[(&str, &str, &str)] = &[
        ("patch_size_t", "1", "as the class embeds frame by frame"),
        ("dropout", "0.0", "training with it is not supported"),
        ("activation_fn", "\"gelu-approximate\"", "as in all checkpoints"),
        ("norm_elementwise_affine", "false", "as in all checkpoints"),
    ];

    fn check(&self) -> Vec<String> {
        let (dim, pairs) = (self.inner_dim(), 2 * AXES);
        Rules::of(self)
            .between(&["in_channels", "out_channels", "caption_channels", "num_layers"], SIZE)
            .between(&["num_attention_heads", "attention_head_dim", "patch_size"], SIZE)
            .above_zero(&[
                "norm_eps",
                "interpolation_scale_h",
                "interpolation_scale_w",
                "interpolation_scale_t",
            ])
            .must(
                "attention_head_dim",
                self.attention_head_dim.is_multiple_of(pairs),
                format!("a multiple of {pairs}, for pairs of features on three axes"),
            )
            .must(
                "cross_attention_dim",
                self.cross_attention_dim == dim,
                format!("num_attention_heads x attention_head_dim, {dim}: the text is projected to that"),
            )
            .wrong()
    }
}
