//! `transformer/config.json` of a HunyuanVideo checkpoint.

use serde::{Deserialize, Serialize};

use super::EPS;
use crate::diffusers_config::{self as config, Rules, SIZE};
use crate::nn::condition_embed::ConditionEmbedSpec;
use crate::nn::token_refiner::TokenRefinerSpec;

/// Sines and cosines of a timestep.
const TIME_WIDTH: usize = 256;

/// Settings of `HunyuanVideoTransformer3DModel`, with its defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Channels of the latents; with `latent_concat` the image's latents and a mask follow.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Features per head.
    pub attention_head_dim: usize,
    /// Number of blocks with a stream for text and one for the clip.
    pub num_layers: usize,
    /// Number of blocks with one stream, behind those.
    pub num_single_layers: usize,
    /// Number of blocks that refine the text.
    pub num_refiner_layers: usize,
    /// Inner width of the feed-forward layers, in widths of the model.
    pub mlp_ratio: f64,
    /// Latent rows and columns of a patch.
    pub patch_size: usize,
    /// Latent frames of a patch.
    pub patch_size_t: usize,
    /// True for models that know their guidance scale.
    pub guidance_embeds: bool,
    /// Width of the text.
    pub text_embed_dim: usize,
    /// Width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Base of the rotary angles.
    pub rope_theta: f32,
    /// Features of a head that frame, row and column rotate.
    pub rope_axes_dim: [usize; 3],
    /// Use of an image.
    pub image_condition_type: Option<ImageConditionType>,
}

/// Uses of an image by published models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageConditionType {
    /// Channels of the image follow the clip's.
    LatentConcat,
    /// The image is the first frame, without noise, and with the modulation of timestep 0.
    TokenReplace,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 16,
            out_channels: 16,
            num_attention_heads: 24,
            attention_head_dim: 128,
            num_layers: 20,
            num_single_layers: 40,
            num_refiner_layers: 2,
            mlp_ratio: 4.0,
            patch_size: 2,
            patch_size_t: 1,
            guidance_embeds: true,
            text_embed_dim: 4096,
            pooled_projection_dim: 768,
            rope_theta: 256.0,
            rope_axes_dim: [16, 56, 56],
            image_condition_type: None,
        }
    }
}

impl Config {
    /// Returns the width of the tokens.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Returns the inner width of the feed-forward layers.
    pub fn mlp_dim(&self) -> usize {
        (self.inner_dim() as f64 * self.mlp_ratio) as usize
    }

    /// Returns the latent frames, rows and columns of a patch.
    pub fn patch(&self) -> [usize; 3] {
        [self.patch_size_t, self.patch_size, self.patch_size]
    }

    /// Returns the sizes of the text's refiner.
    pub fn refiner(&self) -> TokenRefinerSpec {
        TokenRefinerSpec {
            text_dim: self.text_embed_dim,
            dim: self.inner_dim(),
            num_heads: self.num_attention_heads,
            num_layers: self.num_refiner_layers,
            time_width: TIME_WIDTH,
            eps: EPS,
        }
    }

    /// Returns the sizes of the embedding of timestep, pooled text and guidance scale.
    pub fn conditions(&self) -> ConditionEmbedSpec {
        ConditionEmbedSpec {
            time_width: TIME_WIDTH,
            pooled_dim: self.pooled_projection_dim,
            dim: self.inner_dim(),
            guidance: self.guidance_embeds,
        }
    }

    /// Returns true if the first frame is an image with a modulation of its own.
    pub fn replaces_tokens(&self) -> bool {
        self.image_condition_type == Some(ImageConditionType::TokenReplace)
    }
}

impl config::Config for Config {
    const CLASS: &str = "HunyuanVideoTransformer3DModel";
    const FIXED: &[(&str, &str, &str)] = &[("qk_norm", "\"rms_norm\"", "as in all checkpoints")];

    fn check(&self) -> Vec<String> {
        Rules::of(self)
            .between(
                &[
                    "in_channels",
                    "out_channels",
                    "num_attention_heads",
                    "attention_head_dim",
                ],
                SIZE,
            )
            .between(&["num_layers", "num_single_layers", "num_refiner_layers"], SIZE)
            .between(
                &["patch_size", "patch_size_t", "text_embed_dim", "pooled_projection_dim"],
                SIZE,
            )
            .above_zero(&["mlp_ratio", "rope_theta"])
            .must(
                "mlp_ratio",
                SIZE.contains(&self.mlp_dim()),
                "an inner width of 1 and more, and of no more than any model has",
            )
            .must(
                "rope_axes_dim",
                self.rope_axes_dim.iter().all(|width| width.is_multiple_of(2))
                    && self.rope_axes_dim.iter().sum::<usize>() == self.attention_head_dim,
                format!("even numbers, together attention_head_dim, {}", self.attention_head_dim),
            )
            .must(
                "patch_size_t",
                !self.replaces_tokens() || self.patch_size_t == 1,
                "1 with token_replace: the first frame's tokens are its own",
            )
            .wrong()
    }
}
