//! A transformer without the rest of its checkpoint, with random input: for benchmarks.
//!
//! With random weights, nothing but `transformer/config.json` is needed.

use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use candle_core::{DType, Tensor};

use super::denoiser::{Denoiser, Input, TextEmbeds};
use super::transformer::{Network, Transformer};
use crate::data::Bucket;
use crate::nn::Weights;
use crate::nn::adapter::Adapt;
use crate::rng::Rng;

/// A transformer, with random input in the shapes of training.
pub struct SyntheticBatch {
    /// The transformer.
    pub denoiser: Box<dyn Denoiser>,
    /// Noise, text and conditions as input.
    pub input: Input,
    /// Random target in the prediction's shape.
    pub target: Tensor,
    /// FLOPs of one sample.
    pub work: Flops,
}

/// Floating-point operations of one sample in a transformer, of its large products alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flops {
    /// Tokens of text and video.
    pub tokens: usize,
    /// Floating-point operations of the linear layers, forward.
    pub linear: f64,
    /// Floating-point operations of the products within attention, forward.
    pub attention: f64,
}

impl Flops {
    /// FLOPs of `layers` blocks of width `dim` with self-attention and cross-attention to `context` tokens: in each six
    /// projections of the video and two of the context, a feed-forward `inner` wide, two products within either
    /// attention.
    pub fn across(layers: usize, tokens: usize, context: usize, [dim, inner]: [usize; 2]) -> Self {
        let (count, others, layers) = (tokens as f64, context as f64, layers as f64);
        let (dim, inner) = (dim as f64, inner as f64);
        Self {
            tokens,
            linear: layers * 2.0 * (count * (6.0 * dim + 2.0 * inner) + others * 2.0 * dim) * dim,
            attention: layers * 4.0 * count * (count + others) * dim,
        }
    }

    /// Returns the FLOPs of a training step without recomputation: linear layers compute one gradient (their weights
    /// are frozen); attention has five products backward for two forward. Adapters are not counted.
    pub fn step(&self) -> f64 {
        2.0 * self.linear + 3.5 * self.attention
    }
}

/// Returns the latent frames, rows and columns of a bucket, with compression `[time, space]`; a token takes `patch`
/// rows and columns of latents.
pub fn latent_grid(bucket: Bucket, [time, space]: [usize; 2], patch: [usize; 2]) -> anyhow::Result<[usize; 3]> {
    let [rows, columns] = patch.map(|patch| space.saturating_mul(patch));
    ensure!(
        bucket.height.is_multiple_of(rows) && bucket.width.is_multiple_of(columns),
        "the bucket {bucket}: height and width must be multiples of {rows} and {columns}"
    );
    let frames = bucket.frames.saturating_sub(1) / time + 1;
    Ok([frames, bucket.height / space, bucket.width / space])
}

/// Timestep of every sample: one in the middle.
const TIMESTEP: f32 = 500.0;

/// Input shapes of a family's transformer, for one sample.
pub struct SyntheticSpec {
    /// Latents in the network's layout.
    pub latents: [usize; 4],
    /// Prediction in the network's layout.
    pub target: [usize; 4],
    /// Tokens and width.
    pub text: [usize; 2],
    /// True if the network takes a mask of text tokens.
    pub text_mask: bool,
    /// Tokens and features of an encoded image, if the network attends to one.
    pub image: Option<[usize; 2]>,
    /// Value of `ofs`, if the network embeds one.
    pub ofs: Option<f32>,
    /// Frames per second, if positions count seconds.
    pub frame_rate: Option<f64>,
    /// FLOPs of one sample.
    pub work: Flops,
}

impl SyntheticSpec {
    /// Builds the transformer whose `config.json` is in `folder`, and draws `batch` samples of standard normal numbers,
    /// in f32, on the weights' device.
    pub fn open<N: Network + 'static>(
        self,
        folder: &Path,
        weights: Weights,
        adapt: Option<Arc<dyn Adapt>>,
        batch: usize,
    ) -> anyhow::Result<SyntheticBatch> {
        let device = weights.device().clone();
        let mut rng = Rng::new(0);
        let mut draw = |shape: &[usize]| {
            let shape = [&[batch], shape].concat();
            Tensor::from_vec(rng.randn(shape.iter().product()), shape, &device)
        };
        let latents = draw(&self.latents)?;
        let mask = Tensor::ones((batch, self.text[0]), DType::F32, &device);
        let text = TextEmbeds {
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
        Ok(SyntheticBatch {
            work: self.work,
            denoiser: Box::new(Transformer::<N>::load_from(folder, weights, adapt)?),
            input,
            target,
        })
    }
}
