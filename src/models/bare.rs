//! A transformer without the rest of its checkpoint, and something to run it on: for measuring.
//!
//! Nothing but `transformer/config.json` is needed where the weights are made up.

use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use candle_core::{DType, Tensor};

use super::denoiser::{Denoiser, Input, Text};
use super::rooms;
use super::transformer::{Network, Transformer};
use crate::data::Bucket;
use crate::nn::Weights;
use crate::nn::weights::Planter;
use crate::rng::Rng;

/// A transformer, and noise of the shapes that it would be trained on.
pub struct Bare {
    pub denoiser: Box<dyn Denoiser>,
    pub input: Input,
    /// As the prediction's.
    pub target: Tensor,
    pub work: Work,
}

/// How much one sample asks of a transformer, in its large products alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Tokens of text and video.
    pub tokens: usize,
    /// Floating-point operations of the linear layers, forwards.
    pub linear: f64,
    /// Of the products within attention, forwards.
    pub attention: f64,
}

impl Work {
    /// Of `layers` blocks of width `dim` that attend to themselves and across to `context` tokens: in each six projections of
    /// the video and two of the context, a feed-forward `inner` wide, two products within either attention.
    pub fn across(layers: usize, tokens: usize, context: usize, [dim, inner]: [usize; 2]) -> Self {
        let (count, others, layers) = (tokens as f64, context as f64, layers as f64);
        let (dim, inner) = (dim as f64, inner as f64);
        Self {
            tokens,
            linear: layers * 2.0 * (count * (6.0 * dim + 2.0 * inner) + others * 2.0 * dim) * dim,
            attention: layers * 4.0 * count * (count + others) * dim,
        }
    }

    /// One training step without recomputation: linear layers pass back one gradient (their weights are frozen); attention
    /// has five products on its way back for two on its way forward. Adapters are not counted.
    pub fn step(&self) -> f64 {
        2.0 * self.linear + 3.5 * self.attention
    }
}

/// Builds the transformer below `directory` with `weights`, and draws an input of `batch` clips of a bucket.
///
/// # Errors
/// No readable `transformer/config.json`, a class of no family here, a bucket that does not fit the model.
pub fn open(
    directory: &Path,
    weights: Weights,
    planter: Option<Arc<dyn Planter>>,
    bucket: Bucket,
    batch: usize,
) -> anyhow::Result<Bare> {
    let folder = directory.join("transformer");
    (rooms::of_transformer(&folder)?.bare)(&folder, weights, planter, bucket, batch)
}

/// Latent frames, rows and columns of a bucket, of which `[time, space, space]` become one; a token takes `patch` rows and
/// columns of latents.
pub fn latent_grid(bucket: Bucket, [time, space]: [usize; 2], patch: [usize; 2]) -> anyhow::Result<[usize; 3]> {
    let [rows, columns] = patch.map(|patch| space.saturating_mul(patch));
    ensure!(
        bucket.height.is_multiple_of(rows) && bucket.width.is_multiple_of(columns),
        "the bucket {bucket}: height and width must be multiples of {rows} and {columns}"
    );
    let frames = bucket.frames.saturating_sub(1) / time + 1;
    Ok([frames, bucket.height / space, bucket.width / space])
}

/// The timestep of every sample: one in the middle.
const TIMESTEP: f32 = 500.0;

/// What a family's transformer is run on. Shapes are those of one sample.
pub struct Sketch {
    pub latents: [usize; 4],
    pub target: [usize; 4],
    /// Tokens and width.
    pub text: [usize; 2],
    pub text_mask: bool,
    pub image: Option<[usize; 2]>,
    pub ofs: Option<f32>,
    pub frame_rate: Option<f64>,
    pub work: Work,
}

impl Sketch {
    /// Builds the transformer whose `config.json` is in `folder`, and draws `batch` samples of standard normal numbers, in
    /// f32, where the weights are.
    pub fn open<N: Network + 'static>(
        self,
        folder: &Path,
        weights: Weights,
        planter: Option<Arc<dyn Planter>>,
        batch: usize,
    ) -> anyhow::Result<Bare> {
        let device = weights.device().clone();
        let mut rng = Rng::new(0);
        let mut draw = |shape: &[usize]| {
            let shape = [&[batch], shape].concat();
            Tensor::from_vec(rng.randn(shape.iter().product()), shape, &device)
        };
        let latents = draw(&self.latents)?;
        let mask = Tensor::ones((batch, self.text[0]), DType::F32, &device);
        let text = Text {
            hidden: draw(&self.text)?,
            mask: self.text_mask.then_some(mask).transpose()?,
        };
        let timestep = Tensor::from_vec(vec![TIMESTEP; batch], batch, &device)?;
        let input = Input {
            image: self.image.map(|image| draw(&image)).transpose()?,
            ofs: self.ofs.map(|ofs| Tensor::new(&[ofs], &device)).transpose()?,
            frame_rates: self.frame_rate.map(|rate| vec![rate; batch]),
            ..Input::new(latents, timestep, text)
        };
        let target = draw(&self.target)?;
        Ok(Bare {
            work: self.work,
            denoiser: Box::new(Transformer::<N>::load_from(folder, weights, planter)?),
            input,
            target,
        })
    }
}
