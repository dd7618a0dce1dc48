//! What is kept of each clip and caption between runs: latents and text embeddings.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `precompute:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where latents and text embeddings are kept; null: `precomputed` in the output directory.
    pub dir: Option<PathBuf>,
    /// `sample` draws a latent anew each epoch, `mode` takes the mean.
    pub latents: Latents,
    /// Encode large frames in overlapping tiles: less memory, nearly the same latents.
    pub vae_tiling: bool,
    /// Encode the clips of a batch one by one: less memory, the same latents.
    pub vae_slicing: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: None,
            latents: Latents::Sample,
            vae_tiling: true,
            vae_slicing: true,
        }
    }
}

/// What a step trains on, given a clip's posterior.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Latents {
    Sample,
    Mode,
}

/// How large a family's encodings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    pub latent_channels: usize,
    /// Frames a latent frame stands for; the first frame stands alone (a causal VAE).
    pub temporal_compression: usize,
    pub spatial_compression: usize,
    pub text_tokens: usize,
    pub text_width: usize,
}

impl Footprint {
    /// Bytes of one clip's posterior: mean and log-variance, f32.
    pub fn latent_bytes(&self, num_frames: usize, height: usize, width: usize) -> u64 {
        let frames = num_frames.saturating_sub(1).div_ceil(self.temporal_compression.max(1)) + 1;
        let scale = self.spatial_compression.max(1);
        let pixels = height.div_ceil(scale) * width.div_ceil(scale);
        (2 * self.latent_channels * frames * pixels * size_of::<f32>()) as u64
    }

    /// Bytes of one caption's embedding at `bytes_per_value`.
    pub fn caption_bytes(&self, bytes_per_value: usize) -> u64 {
        (self.text_tokens * self.text_width * bytes_per_value) as u64
    }
}
