//! A Wan transformer alone, on noise of a bucket's shape.

use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use candle_core::Tensor;

use super::FOOTPRINT;
use super::dit::{self, Dit};
use super::family::TEXT_TOKENS;
use crate::data::Bucket;
use crate::models::bare::{Bare, Work, noise};
use crate::models::denoiser::Input;
use crate::nn::Weights;
use crate::nn::weights::Planter;
use crate::rng::Rng;

/// The timestep of every sample: one in the middle.
const TIMESTEP: f32 = 500.0;

/// Of one image, as its encoder has them.
const IMAGE_TOKENS: usize = 257;

/// Reads `config.json` in `folder`; the VAE's compression is that of the published checkpoints.
pub fn bare(
    folder: &Path,
    weights: Weights,
    planter: Option<Arc<dyn Planter>>,
    bucket: Bucket,
    batch: usize,
) -> anyhow::Result<Bare> {
    let config = dit::Config::load(folder)?;
    let [depth, patch_height, patch_width] = config.patch_size;
    let space = FOOTPRINT.spatial_compression;
    let (rows, columns) = (space * patch_height, space * patch_width);
    ensure!(
        bucket.height.is_multiple_of(rows) && bucket.width.is_multiple_of(columns),
        "the bucket {bucket}: height must be a multiple of {rows}, width of {columns}"
    );
    let frames = bucket.frames.saturating_sub(1) / FOOTPRINT.temporal_compression + 1;
    let (height, width) = (bucket.height / space, bucket.width / space);
    let mut rng = Rng::new(0);
    let mut draw = |shape: &[usize]| noise(&mut rng, shape, &weights);
    let latents = draw(&[batch, config.in_channels, frames, height, width])?;
    let timestep = Tensor::from_vec(vec![TIMESTEP; batch], batch, weights.device())?;
    let text = draw(&[batch, TEXT_TOKENS, config.text_dim])?;
    let image_tokens = config.pos_embed_seq_len.unwrap_or(IMAGE_TOKENS);
    let image = config.image_dim.map(|width| draw(&[batch, image_tokens, width]));
    let input = Input {
        image: image.transpose()?,
        ..Input::new(latents, timestep, text)
    };
    let target = draw(&[batch, config.predicted_channels(), frames, height, width])?;
    let tokens = (frames / depth) * (height / patch_height) * (width / patch_width);
    let context = TEXT_TOKENS + config.image_dim.map_or(0, |_| image_tokens);
    Ok(Bare {
        work: work(&config, tokens, context),
        denoiser: Box::new(Dit::load_from(folder, weights, planter)?),
        input,
        target,
    })
}

/// In each block six projections of the video and two of text and image, a feed-forward, two products within attention to
/// itself and two within attention to text and image.
fn work(config: &dit::Config, tokens: usize, context: usize) -> Work {
    let (count, others, ffn) = (tokens as f64, context as f64, config.ffn_dim as f64);
    let (dim, layers) = (config.inner_dim() as f64, config.num_layers as f64);
    Work {
        tokens,
        linear: layers * 2.0 * (count * (6.0 * dim + 2.0 * ffn) + others * 2.0 * dim) * dim,
        attention: layers * 4.0 * count * (count + others) * dim,
    }
}
