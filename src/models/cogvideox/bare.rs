//! A CogVideoX transformer alone, on noise of a bucket's shape.

use std::path::Path;
use std::sync::Arc;

use super::FOOTPRINT;
use super::dit;
use crate::data::Bucket;
use crate::models::bare::{Bare, Sketch, Work, latent_grid};
use crate::nn::Weights;
use crate::nn::weights::Planter;

/// Reads `config.json` in `folder`; the VAE's compression is that of the published checkpoints.
pub fn bare(
    folder: &Path,
    weights: Weights,
    planter: Option<Arc<dyn Planter>>,
    bucket: Bucket,
    batch: usize,
) -> anyhow::Result<Bare> {
    let config = dit::Config::load(folder)?;
    let compression = [config.temporal_compression_ratio, FOOTPRINT.spatial_compression];
    let [frames, height, width] = latent_grid(bucket, compression, [config.patch_size; 2])?;
    let frames = frames + config.additional_frames(frames);
    let sketch = Sketch {
        latents: [frames, config.in_channels, height, width],
        target: [frames, config.out_channels, height, width],
        text: [config.max_text_seq_length, config.text_embed_dim],
        text_mask: false,
        image: None,
        ofs: config.ofs_embed_dim.map(|_| 2.0),
        frame_rate: None,
        work: work(&config, frames, height, width),
    };
    sketch.open::<dit::Network>(folder, weights, planter, batch)
}

/// Four projections and a feed-forward four times as wide in each block; two products within attention.
fn work(config: &dit::Config, frames: usize, height: usize, width: usize) -> Work {
    let patches = (frames / config.patch_frames()) * (height / config.patch_size) * (width / config.patch_size);
    let tokens = config.max_text_seq_length + patches;
    let (count, dim, layers) = (tokens as f64, config.inner_dim() as f64, config.num_layers as f64);
    Work {
        tokens,
        linear: layers * 2.0 * count * 12.0 * dim * dim,
        attention: layers * 4.0 * count * count * dim,
    }
}
