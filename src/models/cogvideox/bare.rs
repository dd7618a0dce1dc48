//! A CogVideoX transformer alone, on noise of a bucket's shape.

use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use candle_core::Tensor;

use super::FOOTPRINT;
use super::dit::{self, Dit};
use crate::data::Bucket;
use crate::models::bare::{Bare, Work, noise};
use crate::models::denoiser::Input;
use crate::nn::Weights;
use crate::nn::weights::Planter;
use crate::rng::Rng;

/// The timestep of every sample: one in the middle.
const TIMESTEP: i64 = 500;

/// Reads `config.json` in `folder`; the VAE's compression is that of the published checkpoints.
pub fn bare(
    folder: &Path,
    weights: Weights,
    planter: Option<Arc<dyn Planter>>,
    bucket: Bucket,
    batch: usize,
) -> anyhow::Result<Bare> {
    let config = dit::Config::load(folder)?;
    let (space, patch) = (FOOTPRINT.spatial_compression, config.patch_size);
    ensure!(
        bucket.height.is_multiple_of(space * patch) && bucket.width.is_multiple_of(space * patch),
        "the bucket {bucket}: height and width must be multiples of {}",
        space * patch
    );
    let frames = bucket.frames.saturating_sub(1) / config.temporal_compression_ratio + 1;
    let frames = frames + config.additional_frames(frames);
    let (height, width) = (bucket.height / space, bucket.width / space);
    let mut rng = Rng::new(0);
    let mut draw = |shape: &[usize]| noise(&mut rng, shape, &weights);
    let latents = draw(&[batch, frames, config.in_channels, height, width])?;
    let timestep = Tensor::from_vec(vec![TIMESTEP; batch], batch, weights.device())?;
    let text = draw(&[batch, config.max_text_seq_length, config.text_embed_dim])?;
    let ofs = config.ofs_embed_dim.map(|_| Tensor::new(&[2f32], weights.device()));
    let input = Input {
        ofs: ofs.transpose()?,
        ..Input::new(latents, timestep, text)
    };
    let target = draw(&[batch, frames, config.out_channels, height, width])?;
    Ok(Bare {
        work: work(&config, frames, height, width),
        denoiser: Box::new(Dit::load_from(folder, weights, planter)?),
        input,
        target,
    })
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
