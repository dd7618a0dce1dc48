//! A CogVideoX transformer alone, with random input in a bucket's shape.

use std::path::Path;
use std::sync::Arc;

use super::FOOTPRINT;
use super::dit;
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
    let compression = [config.temporal_compression_ratio, FOOTPRINT.spatial_compression];
    let [frames, height, width] = latent_grid(bucket, compression, [config.patch_size; 2])?;
    let frames = frames + config.additional_frames(frames);
    let sketch = SyntheticSpec {
        latents: [frames, config.in_channels, height, width],
        target: [frames, config.out_channels, height, width],
        text: [config.max_text_seq_length, config.text_embed_dim],
        text_mask: false,
        image: None,
        ofs: config.ofs_embed_dim.map(|_| 2.0),
        frame_rate: None,
        work: work(&config, frames, height, width),
    };
    sketch.open::<dit::Network>(folder, weights, adapt, batch)
}

/// FLOPs: four projections and a feed-forward of four times the width in each block; two products within attention.
fn work(config: &dit::Config, frames: usize, height: usize, width: usize) -> Flops {
    let patches = (frames / config.patch_frames()) * (height / config.patch_size) * (width / config.patch_size);
    let tokens = config.max_text_seq_length + patches;
    let (count, dim, layers) = (tokens as f64, config.inner_dim() as f64, config.num_layers as f64);
    Flops {
        tokens,
        linear: layers * 2.0 * count * 12.0 * dim * dim,
        attention: layers * 4.0 * count * count * dim,
    }
}
