//! `transformer/config.json` of a CogVideoX checkpoint.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::nn::config::{self, Rules, SIZE};
use crate::nn::feed_forward::Activation;

/// More text tokens than any checkpoint has.
const MAX_TEXT: usize = 2048;

/// The settings of `CogVideoXTransformer3DModel`, with its defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    /// Of the latents, and in image to video of the image's latents as well.
    pub in_channels: usize,
    pub out_channels: usize,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    pub time_embed_dim: usize,
    /// Set where a number `ofs` is embedded beside the timestep (1.5, image to video).
    pub ofs_embed_dim: Option<usize>,
    pub text_embed_dim: usize,
    pub num_layers: usize,
    pub attention_bias: bool,
    /// Latent rows and columns, and video frames, that the model was made for.
    pub sample_width: usize,
    pub sample_height: usize,
    pub sample_frames: usize,
    pub patch_size: usize,
    /// Latent frames a patch is deep; None: one, with the weights kept as a convolution's (1.0).
    pub patch_size_t: Option<usize>,
    pub temporal_compression_ratio: usize,
    pub max_text_seq_length: usize,
    pub norm_elementwise_affine: bool,
    pub norm_eps: f64,
    pub spatial_interpolation_scale: f64,
    pub temporal_interpolation_scale: f64,
    pub use_rotary_positional_embeddings: bool,
    pub use_learned_positional_embeddings: bool,
    /// Of the convolution only; the linear layer of 1.5 always has one.
    pub patch_bias: bool,
    pub dropout: f64,
    pub activation_fn: Activation,
    pub timestep_activation_fn: TimestepActivation,
}

/// Of the timestep's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimestepActivation {
    #[serde(rename = "silu")]
    Silu,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_attention_heads: 30,
            attention_head_dim: 64,
            in_channels: 16,
            out_channels: 16,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            time_embed_dim: 512,
            ofs_embed_dim: None,
            text_embed_dim: 4096,
            num_layers: 30,
            attention_bias: true,
            sample_width: 90,
            sample_height: 60,
            sample_frames: 49,
            patch_size: 2,
            patch_size_t: None,
            temporal_compression_ratio: 4,
            max_text_seq_length: 226,
            norm_elementwise_affine: true,
            norm_eps: 1e-5,
            spatial_interpolation_scale: 1.875,
            temporal_interpolation_scale: 1.0,
            use_rotary_positional_embeddings: false,
            use_learned_positional_embeddings: false,
            patch_bias: true,
            dropout: 0.0,
            activation_fn: Activation::GeluTanh,
            timestep_activation_fn: TimestepActivation::Silu,
        }
    }
}

impl Config {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// No such file, another model's, an unknown key, sizes that do not go together: by file and key.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        config::read(folder)
    }

    /// Width of the tokens.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Latent frames a patch is deep.
    pub fn patch_frames(&self) -> usize {
        self.patch_size_t.unwrap_or(1)
    }

    /// How many latent frames must be put before a clip of `frames` to make its patches whole.
    ///
    /// The pipelines drop as many from the front before decoding; training repeats the first frame there.
    pub fn additional_frames(&self, frames: usize) -> usize {
        frames.next_multiple_of(self.patch_frames()) - frames
    }
}

impl config::Config for Config {
    const CLASS: &str = "CogVideoXTransformer3DModel";

    fn check(&self) -> Vec<String> {
        Rules::of(self)
            .between(&["num_attention_heads", "attention_head_dim", "num_layers"], SIZE)
            .between(&["in_channels", "out_channels", "text_embed_dim"], SIZE)
            .between(&["time_embed_dim", "ofs_embed_dim", "temporal_compression_ratio"], SIZE)
            .between(&["sample_width", "sample_height", "sample_frames"], SIZE)
            .between(&["patch_size", "patch_size_t"], SIZE)
            .between(&["max_text_seq_length"], 1..=MAX_TEXT)
            .between(&["freq_shift"], 0..=1)
            .above_zero(&[
                "norm_eps",
                "spatial_interpolation_scale",
                "temporal_interpolation_scale",
            ])
            .holds(self.sample_width.min(self.sample_height) >= self.patch_size, || {
                format!(
                    "sample_width and sample_height: at least patch_size {}",
                    self.patch_size
                )
            })
            .only("dropout", 0.0, "training with it is not supported")
            .must(
                "attention_head_dim",
                self.attention_head_dim.is_multiple_of(16),
                "a multiple of 16 for positions on three axes",
            )
            .must(
                "ofs_embed_dim",
                self.ofs_embed_dim.is_none_or(|ofs| ofs == self.time_embed_dim),
                format!("time_embed_dim, {}, to be added to it", self.time_embed_dim),
            )
            .must(
                "use_learned_positional_embeddings",
                self.use_rotary_positional_embeddings || !self.use_learned_positional_embeddings,
                "false without use_rotary_positional_embeddings",
            )
            .wrong()
    }
}
