//! An LTX-Video transformer alone, on noise of a bucket's shape.

use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use candle_core::{DType, Tensor};

use super::dit::{self, Dit, SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION};
use super::family::{FRAME_RATE, TEXT_TOKENS};
use crate::data::Bucket;
use crate::models::bare::{Bare, Work, noise};
use crate::models::denoiser::{Input, Text};
use crate::nn::Weights;
use crate::nn::weights::Planter;
use crate::rng::Rng;

/// The timestep of every sample: one in the middle.
const TIMESTEP: f32 = 500.0;

/// Reads `config.json` in `folder`; the VAE's compression is that of the published checkpoints.
pub fn bare(
    folder: &Path,
    weights: Weights,
    planter: Option<Arc<dyn Planter>>,
    bucket: Bucket,
    batch: usize,
) -> anyhow::Result<Bare> {
    let config = dit::Config::load(folder)?;
    let space = SPATIAL_COMPRESSION;
    ensure!(
        bucket.height.is_multiple_of(space) && bucket.width.is_multiple_of(space),
        "the bucket {bucket}: height and width must be multiples of {space}"
    );
    let frames = bucket.frames.saturating_sub(1) / TEMPORAL_COMPRESSION + 1;
    let (height, width) = (bucket.height / space, bucket.width / space);
    let mut rng = Rng::new(0);
    let mut draw = |shape: &[usize]| noise(&mut rng, shape, &weights);
    let latents = draw(&[batch, config.in_channels, frames, height, width])?;
    let timestep = Tensor::from_vec(vec![TIMESTEP; batch], batch, weights.device())?;
    let text = Text {
        hidden: draw(&[batch, TEXT_TOKENS, config.caption_channels])?,
        mask: Some(Tensor::ones((batch, TEXT_TOKENS), DType::F32, weights.device())?),
    };
    let input = Input {
        frame_rates: Some(vec![FRAME_RATE; batch]),
        ..Input::new(latents, timestep, text)
    };
    let target = draw(&[batch, config.predicted_channels(), frames, height, width])?;
    Ok(Bare {
        work: work(&config, frames * height * width),
        denoiser: Box::new(Dit::load_from(folder, weights, planter)?),
        input,
        target,
    })
}

/// In each block six projections of the video and two of the text, a feed-forward four times as wide, two products within
/// attention to itself and two within attention to the text.
fn work(config: &dit::Config, tokens: usize) -> Work {
    let (count, text) = (tokens as f64, TEXT_TOKENS as f64);
    let (dim, layers) = (config.inner_dim() as f64, config.num_layers as f64);
    Work {
        tokens,
        linear: layers * 2.0 * (14.0 * count + 2.0 * text) * dim * dim,
        attention: layers * 4.0 * count * (count + text) * dim,
    }
}
