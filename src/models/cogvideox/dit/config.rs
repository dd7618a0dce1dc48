//! `transformer/config.json` of a CogVideoX checkpoint.

use serde::{Deserialize, Serialize};

use crate::diffusers_config::{self as config, Rules, SIZE};

/// Upper limit for text tokens, more than any checkpoint has.
const MAX_TEXT: usize = 2048;

/// Settings of `CogVideoXTransformer3DModel`, with its defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Features per head.
    pub attention_head_dim: usize,
    /// Channels of the latents, in image-to-video including those of the image's latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Cosines before sines in the timestep's embedding.
    pub flip_sin_to_cos: bool,
    /// Offset of the frequencies' denominator in the timestep's embedding.
    pub freq_shift: f64,
    /// Width of the embedded timestep.
    pub time_embed_dim: usize,
    /// Width of the embedding of a number `ofs`, in addition to the timestep's (1.5, image to video).
    pub ofs_embed_dim: Option<usize>,
    /// Width of the text encoder's tokens.
    pub text_embed_dim: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Biases on the projections of queries, keys and values.
    pub attention_bias: bool,
    /// Latent columns that the model was made for.
    pub sample_width: usize,
    /// Rows of latents that the position table was made for.
    pub sample_height: usize,
    /// Frames of pixels that the position table was made for.
    pub sample_frames: usize,
    /// Rows, and columns, of latents that become one token.
    pub patch_size: usize,
    /// Latent frames per patch; None: one, with the weights stored as a convolution's (1.0).
    pub patch_size_t: Option<usize>,
    /// Frames of pixels per latent frame.
    pub temporal_compression_ratio: usize,
    /// Text tokens that the position table was made for.
    pub max_text_seq_length: usize,
    /// Weights and biases on norms.
    pub norm_elementwise_affine: bool,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Stretch of the position table along rows and columns.
    pub spatial_interpolation_scale: f64,
    /// Stretch of the position table along frames.
    pub temporal_interpolation_scale: f64,
    /// Rotary position embeddings on queries and keys.
    pub use_rotary_positional_embeddings: bool,
    /// Learned position table in the checkpoint.
    pub use_learned_positional_embeddings: bool,
    /// Bias of the convolution; the linear layer of 1.5 always has one.
    pub patch_bias: bool,
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
        }
    }
}

impl Config {
    /// Returns the width of the tokens.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Returns the latent frames, rows and columns per patch.
    pub fn patch(&self) -> [usize; 3] {
        [self.patch_size_t.unwrap_or(1), self.patch_size, self.patch_size]
    }

    /// Returns how many latent frames must be prepended to a clip of `frames` to fill its patches.
    ///
    /// The pipelines drop as many from the front before decoding; training repeats the first frame there.
    pub fn additional_frames(&self, frames: usize) -> usize {
        frames.next_multiple_of(self.patch()[0]) - frames
    }
}

impl config::Config for Config {
    const CLASS: &str = "CogVideoXTransformer3DModel";
    const FIXED: &[(&str, &str, &str)] = &[
        ("dropout", "0.0", "training with it is not supported"),
        ("activation_fn", "\"gelu-approximate\"", "as in all checkpoints"),
        ("timestep_activation_fn", "\"silu\"", "as in all checkpoints"),
    ];

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
