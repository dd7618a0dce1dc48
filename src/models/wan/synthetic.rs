//! A Wan transformer alone, with random input in a bucket's shape.

use std::path::Path;
use std::sync::Arc;

use super::FOOTPRINT;
use super::dit;
use super::family::TEXT_TOKENS;
use crate::data::Bucket;
use crate::models::synthetic::{Flops, SyntheticBatch, SyntheticSpec, latent_grid};
use crate::nn::Weights;
use crate::nn::adapter::Adapt;

/// Tokens of one image from its encoder.
const IMAGE_TOKENS: usize = 257;

/// Reads `config.json` in `folder`; the VAE's compression is that of the published checkpoints.
pub fn synthetic_batch(
    folder: &Path,
    weights: Weights,
    adapt: Option<Arc<dyn Adapt>>,
    bucket: Bucket,
    batch: usize,
) -> anyhow::Result<SyntheticBatch> {
    let config = dit::Config::load(folder)?;
    let compression = [FOOTPRINT.temporal_compression, FOOTPRINT.spatial_compression];
    let [depth, rows, columns] = config.patch_size;
    let [frames, height, width] = latent_grid(bucket, compression, [rows, columns])?;
    let tokens = (frames / depth) * (height / rows) * (width / columns);
    let image_tokens = config.pos_embed_seq_len.unwrap_or(IMAGE_TOKENS);
    let image = config.image_dim.map(|width| [image_tokens, width]);
    let context = TEXT_TOKENS + image.map_or(0, |[tokens, _]| tokens);
    let sketch = SyntheticSpec {
        latents: [config.in_channels, frames, height, width],
        target: [config.predicted_channels(), frames, height, width],
        text: [TEXT_TOKENS, config.text_dim],
        text_mask: false,
        image,
        ofs: None,
        frame_rate: None,
        work: Flops::across(config.num_layers, tokens, context, [config.inner_dim(), config.ffn_dim]),
    };
    sketch.open::<dit::Network>(folder, weights, adapt, batch)
}
