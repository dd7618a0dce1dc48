//! `transformer/config.json` of a CogVideoX checkpoint.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// More text tokens than any checkpoint has.
const MAX_TEXT: usize = 2048;

/// The settings of `CogVideoXTransformer3DModel`, with its defaults.
#[derive(Debug, Clone, Deserialize)]
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

/// Of the timestep's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum TimestepActivation {
    #[serde(rename = "silu")]
    Silu,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum ClassName {
    #[serde(rename = "CogVideoXTransformer3DModel")]
    CogVideoX,
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

    /// Refuses values that parse but make no sense.
    fn check(&self) -> anyhow::Result<()> {
        for (key, size) in [
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("time_embed_dim", self.time_embed_dim),
            ("text_embed_dim", self.text_embed_dim),
            ("num_layers", self.num_layers),
            ("sample_width", self.sample_width),
            ("sample_height", self.sample_height),
            ("sample_frames", self.sample_frames),
            ("patch_size", self.patch_size),
            ("patch_size_t", self.patch_frames()),
            ("temporal_compression_ratio", self.temporal_compression_ratio),
            ("max_text_seq_length", self.max_text_seq_length),
            ("ofs_embed_dim", self.ofs_embed_dim.unwrap_or(1)),
        ] {
            ensure!(
                (1..=1 << 24).contains(&size),
                "{key}: must be at least 1 and no giant, got {size}"
            );
        }
        // Attention over text is quadratic in it; the published checkpoints have 226.
        ensure!(
            self.max_text_seq_length <= MAX_TEXT,
            "max_text_seq_length: at most {MAX_TEXT} are read, got {}",
            self.max_text_seq_length
        );
        for (key, size) in [
            ("sample_width", self.sample_width),
            ("sample_height", self.sample_height),
        ] {
            ensure!(
                size >= self.patch_size,
                "{key}: {size} is less than patch_size {}",
                self.patch_size
            );
        }
        for (key, number) in [
            ("norm_eps", self.norm_eps),
            ("spatial_interpolation_scale", self.spatial_interpolation_scale),
            ("temporal_interpolation_scale", self.temporal_interpolation_scale),
        ] {
            ensure!(
                number > 0.0 && number.is_finite(),
                "{key}: must be above 0, got {number}"
            );
        }
        ensure!(
            (0.0..=1.0).contains(&self.freq_shift),
            "freq_shift: must be 0 or 1, got {}",
            self.freq_shift
        );
        self.check_positions()
    }

    fn check_positions(&self) -> anyhow::Result<()> {
        ensure!(
            self.dropout == 0.0,
            "dropout: must be 0, got {}: training with it is not supported",
            self.dropout
        );
        ensure!(
            self.attention_head_dim.is_multiple_of(16),
            "attention_head_dim: must be a multiple of 16 for positions on three axes, got {}",
            self.attention_head_dim
        );
        if let Some(time) = self.ofs_embed_dim {
            ensure!(
                time == self.time_embed_dim,
                "ofs_embed_dim: {time} cannot be added to time_embed_dim {}",
                self.time_embed_dim
            );
        }
        ensure!(
            self.use_rotary_positional_embeddings || !self.use_learned_positional_embeddings,
            "use_learned_positional_embeddings: needs use_rotary_positional_embeddings as well"
        );
        Ok(())
    }
}
