//! An LTX-Video transformer alone, with random input in a bucket's shape.

use std::path::Path;
use std::sync::Arc;

use super::dit::{self, SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION};
use super::family::{FRAME_RATE, TEXT_TOKENS};
use crate::data::Bucket;
use crate::models::synthetic::{Flops, SyntheticBatch, SyntheticSpec, latent_grid};
use crate::nn::Weights;
use crate::nn::adapter::Adapt;

/// Reads `config.json` in `folder`; the VAE's compression is that of the published checkpoints.
pub fn synthetic_batch(
    folder: &Path,
    weights: Weights,
    adapt: Option<Arc<dyn Adapt>>,
    bucket: Bucket,
    batch: usize,
) -> anyhow::Result<SyntheticBatch> {
    let config = dit::Config::load(folder)?;
    let [frames, height, width] = latent_grid(bucket, [TEMPORAL_COMPRESSION, SPATIAL_COMPRESSION], [1, 1])?;
    let (tokens, dim) = (frames * height * width, config.inner_dim());
    let sketch = SyntheticSpec {
        latents: [config.in_channels, frames, height, width],
        target: [config.predicted_channels(), frames, height, width],
        text: [TEXT_TOKENS, config.caption_channels],
        text_mask: true,
        image: None,
        ofs: None,
        frame_rate: Some(FRAME_RATE),
        work: Flops::across(config.num_layers, tokens, TEXT_TOKENS, [dim, 4 * dim]),
    };
    sketch.open::<dit::Network>(folder, weights, adapt, batch)
}
